// Package mesh is the model: what the mesh should do, free of how Kubernetes
// spells it and of how Envoy runs it.
//
// A [Snapshot] is the whole mesh at one moment. A [View] is the part of it that
// one proxy needs, in halves that many proxies share: what it serves
// ([Inbound]), where its calls may go ([Outbound], a list of [Bundle] values,
// one for each service port) and whom it trusts ([Trust]). Neither ever changes
// once made, so both can be shared between goroutines, compared by key, logged
// and kept in golden files. No private key ever enters this package.
//
// Package ingest makes Snapshots; package xds reads Views. This package imports
// only the standard library, and a test keeps it so.
package mesh
