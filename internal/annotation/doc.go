// Package annotation knows every label and annotation that a user may write on
// a namespace or a pod, OSM's name for it where there is one, and what its
// value means.
//
// It is pure: maps of strings go in, typed values and errors come out. An error
// names the key, the value and what is allowed, because it is shown to whoever
// wrote it. It decides nothing: package injector decides what a pod gets, and
// package ingest what a namespace's policy is.
//
// key.go says what a key is and lists them all: whoever adds one gives it an entry
// in the file of its subject, or adds a subject. From that list come the checks of
// whole objects (check.go) and the page docs/annotations.md (document.go).
//
// inject.go holds who is in the mesh and who gets a sidecar, proxy.go what one
// pod changes about its sidecar, redirect.go which traffic goes round it, policy.go
// what a namespace allows.
package annotation
