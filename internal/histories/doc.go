// Package histories tries the registry in etcd under faults. Processes that are as the
// agents of several nodes are, each with a [fabric.Registry] of its own, allocate and
// release the same few addresses for the same few guests while members of etcd, links,
// disks and the processes themselves fail. What each asked and was answered is a history
// that must be linearizable: as if all had been done one after the other, each between
// its call and its answer, in an order that one registry could have.
//
//	make histories                     all faults, some 10,000 operations
//	go test ./internal/histories       a short one of fixed faults
//
// What an operation did whose answer was lost is read from etcd's own history.
package histories
