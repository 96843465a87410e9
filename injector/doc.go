// Package injector decides whether a pod gets a sidecar, and writes the JSON
// patch that adds it.
//
// [Decide] applies the rules, [Patch] writes the operations, and [Inject] is both
// in order, which is what callers want. [Remove] takes a sidecar out again. All
// are pure functions of the pod, what is known of its namespace, and [Settings]:
// nothing is read, made or remembered, so a dry run is like any other.
//
// It does not speak admission: package webhook does, and cmd/outrigger uses the
// same functions on files. What the sidecar does with what it is given here is in
// package bootstrap and internal/iptables. The golden files under testdata show
// input and output of each case.
package injector
