package ingest

import (
	"github.com/outrigger-mesh/outrigger/internal/annotation"
	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

// namespaces finds those of the mesh and what holds in them.
func (b *builder) namespaces() {
	b.inMesh = map[string]mesh.Namespace{}
	for _, ns := range b.objs.Namespaces {
		if ns.Name == "" || b.member(ns.Name) || annotation.IsSystem(ns.Name, b.opts.SystemNamespace) || !annotation.InMesh(ns.Labels, b.opts.OSMMeshName) {
			continue
		}
		mode, err := annotation.NamespaceMode(ns.Annotations, b.opts.Mode)
		if err != nil {
			b.found.add(ref("v1", "Namespace", ns), BadAnnotation, "%v; %s mode holds", err, mode)
		}
		egress, err := annotation.NamespaceEgress(ns.Annotations, b.opts.AllowEgress)
		if err != nil {
			b.found.add(ref("v1", "Namespace", ns), BadAnnotation, "%v; egress is denied", err)
		}
		plainText, err := annotation.NamespacePlainText(ns.Annotations)
		if err != nil {
			b.found.add(ref("v1", "Namespace", ns), BadAnnotation, "%v; only mutual TLS is let in", err)
		}
		n := mesh.Namespace{Name: ns.Name, Mode: mode, AllowEgress: egress, PlainText: plainText}
		if _, said := ns.Annotations[annotation.TrafficPolicy]; said {
			n.ModeBy = "Namespace " + ns.Name + " annotation"
		}
		b.inMesh[ns.Name] = n
		b.parts.Namespaces = append(b.parts.Namespaces, n)
	}
}

// member reports whether a namespace is in the mesh.
func (b *builder) member(namespace string) bool {
	_, ok := b.inMesh[namespace]
	return ok
}
