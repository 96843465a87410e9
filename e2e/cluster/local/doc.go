// Package local runs a real Kubernetes cluster on this machine: one node, no
// container engine, no registry, no virtual machine.
//
// The programs are built from their Go modules (the nested modules under
// e2e/tools) the first time they are wanted and kept in the user's cache
// folder; runc, the CNI plugins and nft come from Debian's packages. Nothing in
// the cluster is a stand-in: etcd, kube-apiserver, kube-controller-manager,
// kube-scheduler, kubelet, kube-proxy, containerd and CoreDNS are the ones that
// run elsewhere.
//
// There are three things to start:
//
//   - [StartAPIServer]: etcd and kube-apiserver only, bound to the process that
//     asked for them. Any number may run at once, without root. This is what
//     integration tests want.
//   - [StartVault], [StartVaults] and [StartSPIRE]: bound to their process likewise,
//     for tests of the mesh's issuers and of certificates from somebody else.
//   - [Up]: the whole node. It outlives the process that started it and
//     needs root. This is what end-to-end tests and the demo want.
//
// A cluster's state is one folder. Whatever is changed outside of that folder
// (processes, a bridge, a table of packet filter rules, sysctls, cgroups) is
// written to state.json in it first, and [Down] undoes exactly what is
// written there, so that a crash or a reboot leaves nothing that the next Up
// does not know how to remove.
//
// The package is for tests and demonstrations. It is no installer: certificates
// do not rotate, and stopping the cluster deletes its data.
//
// Read config.go for the folders, then up.go for the order of things.
package local
