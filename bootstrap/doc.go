// Package bootstrap makes the static Envoy configuration that a sidecar starts
// with, and holds what the injector and outrigger-agent agree on: the agent's
// argument ([Settings]), its environment, ports and mounts.
//
// It is pure: it reads no file and no environment. Everything that policy can
// change comes later, by xDS; see package xds.
package bootstrap
