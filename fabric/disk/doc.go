// Package disk is a [fabric.Store] in a directory: one file for each guest, which a
// person can read.
//
//	/var/lib/vmfabric/format              the version of the layout
//	/var/lib/vmfabric/guests/web.json     guest web
//	/var/lib/vmfabric/guests/web.json.new a change of it that is not yet safe on the disk
//	/var/lib/vmfabric/guests/.tmp-1       the empty file that the next change fills
//
// A guest's file is JSON: the format, a checksum, and the guest. After an edit by
// hand, this prints the new checksum:
//
//	jq -cj .guest web.json | sha256sum
//
// # What survives
//
// A change is visible to every later reader when Put or Delete returns, so a killed
// process loses nothing. The change is safe on the disk within about 50 ms, or when
// Close returns. A power cut loses at most the changes that are not safe yet, and
// never the content before them: a change stays beside the file that it replaces
// until it is safe.
package disk
