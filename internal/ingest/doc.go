// Package ingest turns Kubernetes and SMI objects into a [mesh.Snapshot], and
// says what in them it cannot honour.
//
// It is a pure function over lists: no client, no clock, no logger. Package
// controller decides when to call it and what to do with the Problems. What a
// Snapshot then means for one proxy is decided in package mesh.
//
// [Build] in build.go has the steps in order, and there is one file for each:
// namespaces.go, pods.go, services.go with protocol.go and endpoints.go, then
// routes.go, targets.go and splits.go for SMI.
package ingest
