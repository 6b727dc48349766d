// Package disk is a [fabric.Store] in a directory: one file a guest, which a
// person can read.
//
//	/var/lib/vmfabric/format              the version of the layout
//	/var/lib/vmfabric/guests/web.json     guest web
//	/var/lib/vmfabric/guests/web.json.new a change of it that is not yet safe on the disk
//	/var/lib/vmfabric/guests/.tmp-1       the empty file that the next change fills
//
// A guest's file is JSON: the format, a checksum, and the guest. Whoever edits
// one by hand gets the new checksum with
//
//	jq -cj .guest web.json | sha256sum
//
// # What survives
//
// A change is visible to every later reader when Put or Delete returns, so a
// process that is killed loses nothing. It is safe on the disk within about
// 50 ms, or when Close returns. A power cut loses at most the changes that
// were not, and never what was there before them: a change stays beside the
// file that it replaces until it is safe.
package disk
