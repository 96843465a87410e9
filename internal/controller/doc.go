// Package controller watches the cluster and publishes what it means: informers
// signal a change, changes are gathered for a moment, ingest.Build reads the
// caches once, and the snapshot goes to whoever serves proxies.
//
// It also tells users what became of their objects. A [Publisher] runs in every
// replica; a [Reporter], which writes Events, runs in the elected one only. What
// policy means is decided in package ingest, never here.
package controller
