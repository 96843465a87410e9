// Package manifest reads the objects of the mesh from YAML, and stands in for what
// a cluster would add to them: pods for workloads, addresses and endpoints for
// Services. With that, questions can be asked about YAML that no cluster has seen.
//
// It reads text, not files, and decides nothing: what the objects mean is for
// package ingest, and whether a pod gets a sidecar for package injector.
package manifest
