// Package agent is what runs beside Envoy in the pod: it makes the workload's
// key and has it signed, starts and ends Envoy, and answers the kubelet.
//
// [Run] is the whole of it; [StartDrain] and [Relay] are what the other commands
// of the same binary ask of a running one. How Envoy is configured is not decided
// here: package bootstrap makes what it starts with, and the rest comes by xDS.
//
// A shell. It must stay small, since every pod of the mesh carries it: no Envoy
// API, no Kubernetes client.
package agent
