package ingest

import (
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// MeshConfigAPIVersion, MeshConfigKind and MeshConfigName are those of the one object
// of OSM's that configured a whole mesh. It stands in the system namespace.
const (
	MeshConfigAPIVersion = "config.openservicemesh.io/v1alpha2"
	MeshConfigKind       = "MeshConfig"
	MeshConfigName       = "osm-mesh-config"
)

// meshConfig reads OSM's MeshConfig, of which the minimum version of TLS counts.
// Where it says nothing that is allowed, the options hold.
func (b *builder) meshConfig() {
	i := slices.IndexFunc(b.objs.MeshConfigs, func(c *unstructured.Unstructured) bool {
		return c.GetName() == MeshConfigName && c.GetNamespace() == b.opts.SystemNamespace
	})
	if i < 0 {
		return
	}
	config := b.objs.MeshConfigs[i]
	fault := func(value any, holds string) {
		b.found.add(ref(MeshConfigAPIVersion, MeshConfigKind, config), BadMeshConfig,
			"spec.sidecar.tlsMinProtocolVersion is %.40q; TLSv1_2, TLSv1_3 and TLS_AUTO are allowed. %s", fmt.Sprint(value), holds)
	}
	value, found, err := unstructured.NestedFieldNoCopy(config.Object, "spec", "sidecar", "tlsMinProtocolVersion")
	if err != nil || !found {
		return // nothing is said, whatever stands around it
	}
	switch value {
	case nil, "":
	case "TLSv1_3":
		b.parts.Settings.OldTLS = false
	case "TLSv1_2", "TLS_AUTO":
		b.parts.Settings.OldTLS = true
	case "TLSv1_0", "TLSv1_1":
		b.parts.Settings.OldTLS = true
		fault(value, "TLS 1.2 is the oldest that the mesh speaks, and holds.")
	default:
		fault(value, "The chart's certificates.minimumTLSVersion holds.")
	}
}
