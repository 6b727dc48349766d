// Package render writes configuration as text for people and other programs, from
// the plain values of [fabric]. It reads and changes nothing but its arguments, and
// the same arguments give the same bytes.
package render
