package clusterfile

import "strings"

func find(keys []key, name string) (key, bool) {
	for _, k := range keys {
		if k.name == name {
			return k, true
		}
	}
	return key{}, false
}

func names(keys []key) string {
	all := make([]string, len(keys))
	for i, k := range keys {
		all[i] = k.name
	}
	return strings.Join(all, ", ")
}

// nearest returns the key that is most likely meant by name, or "".
func nearest(name string, keys []key) string {
	if len(name) > 32 {
		return ""
	}
	name = strings.ReplaceAll(strings.ToLower(name), "-", "_")
	best, least := "", 3
	for _, k := range keys {
		d := distance(name, k.name)
		if len(name) > 2 && (strings.HasPrefix(k.name, name) || strings.HasPrefix(name, k.name)) {
			d = min(d, 2)
		}
		// In a short word two changes make another word.
		if d < least && 2*d < max(len(name), len(k.name)) {
			best, least = k.name, d
		}
	}
	return best
}

// distance counts the letters to insert, remove, replace or swap with their
// neighbour on the way from a to b.
func distance(a, b string) int {
	before, last := make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := range len(a) {
		row := make([]int, len(b)+1)
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			row[j+1] = min(last[j+1]+1, row[j]+1, last[j]+cost)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], before[j-1]+1)
			}
		}
		before, last = last, row
	}
	return last[len(b)]
}
