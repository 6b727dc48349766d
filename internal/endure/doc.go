// Package endure decides what a cluster of real parts goes through, episode by episode
// ([Planner.Next]), says what is wrong with what is seen of it ([World.Wrong]), and adds up
// what guests lost meanwhile ([Account]). It decides by plain values alone: internal/e2e
// acts, and looks.
package endure
