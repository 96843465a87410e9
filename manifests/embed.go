// Package manifests holds the Helm chart that installs Outrigger, and the CRDs
// of the kinds that it reads, as files inside the binary.
//
// What `outrigger install` applies and what `make manifests` renders both come
// from here; there is no second description of the installation.
package manifests

import "embed"

// Chart is the Helm chart, with Chart.yaml at its root.
//
//go:embed Chart.yaml values.yaml values.schema.json all:templates crds
var Chart embed.FS
