// Package render writes configuration as text: what people and other programs
// read, made from the plain values of [fabric]. It reads and changes nothing
// outside its arguments, and the same arguments give the same bytes.
package render
