// Package harness is what the demo and the end-to-end tests stand on: a real
// cluster with the mesh's images, objects applied to it, commands run in its
// pods, and waiting for what must become true.
//
// It uses the cluster of e2e/cluster on this machine, or the one that KUBECONFIG
// names when IMAGE_PREFIX says where its nodes find the images.
package harness
