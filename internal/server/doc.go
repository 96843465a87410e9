// Package server talks to proxies: it gives each its configuration by the delta
// variant of Envoy's xDS protocol, and passes on requests for certificates.
//
// It decides neither what a proxy may use, which package mesh does, nor who gets
// a certificate, which package identity does. It decides who is calling: a
// stream belongs to the pod that the client's certificate was made for.
//
// # How a proxy is kept up to date
//
// Publish gives every stream a target, an xds.Set. The stream's own goroutine
// brings what the proxy has nearer to the target, as far as the order allows:
// clusters, endpoints and secrets; then, when Envoy has acknowledged the
// clusters, which means that they are warm, or after two seconds, listeners and
// routes; then what is gone. A stream that was busy meanwhile finds a newer
// target and skips those between. What a stream remembers is, for each type, the
// Set it was sent, which all streams share, and what is not acknowledged.
//
// stream.go holds that loop, feed.go what it remembers of one type, step.go what
// streams share, authenticate.go who may open a stream.
package server
