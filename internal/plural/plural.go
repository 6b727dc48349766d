// Package plural words numbers of things.
package plural

import "fmt"

// Of gives the number with the words for one, or for any other number of them: 1
// port is, 2 ports are.
func Of[N int | uint64](n N, one, others string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, others)
}
