// Package why answers questions about the mesh: may this caller make this call,
// through which route, by whose word; and why has this pod a sidecar, or none?
//
// The answers come from the same [mesh.Snapshot] and [mesh.View] that configure
// Envoy. Where Envoy compares (paths, methods, headers, names), this package
// compares in the same way, and a test holds it to a real Envoy. It decides
// nothing itself and reads no policy of its own; what it adds is the way there:
// DNS names, pods without a proxy, traffic that goes round one.
//
// Start with [World.Call] and [World.Pod]. The command line is cmd/outrigger.
package why
