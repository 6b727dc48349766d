// Package faults has what goes wrong around an agent, one thing at a time, as a table of
// values: what is promised of guests meanwhile, which test shows it, and what that measured.
// docs/reliability.md is made from it.
package faults
