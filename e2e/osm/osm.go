// Package osm has kinds of Open Service Mesh as its CRDs define them, for tests of what
// the mesh makes of their objects.
package osm

import _ "embed"

// MeshRootCertificates is the CRD of MeshRootCertificate, with what it requires, in YAML.
//
//go:embed meshrootcertificates.yaml
var MeshRootCertificates string
