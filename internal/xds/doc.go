// Package xds says a mesh.View in Envoy's words: listeners, routes, clusters,
// endpoints and secrets, each encoded once and shared by all proxies that have
// it, and the difference between two such [Set]s.
//
// It is pure and knows neither Kubernetes nor gRPC. Package server sends what it
// makes. The facts about Envoy that decide the shape of the resources are in
// ARCHITECTURE.md.
package xds
