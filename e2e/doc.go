// Package e2e proves the mesh's promises on a real cluster, with real pods and
// real Envoys: one file for each promise. Its tests have the build tag e2e and
// are run by `make e2e`; package harness brings the cluster up.
//
// Tests that stop, restart or remove the control plane run first, one after the
// other. The others run at the same time, each in namespaces of its own, whose
// names begin with "e2e-". The mesh is installed once, enforced: what no policy
// allows is denied.
package e2e
