// Package attack has what an attacker does to a cluster, as a table of values: frames of
// a guest that is a stranger, where none of them may be seen, and the same frames of an
// honest guest, which must pass; likewise those of a machine of the underlay that is no node. It makes frames and judges what was seen; a laboratory
// sends them and looks (internal/e2e). docs/security.md is made from the table.
package attack
