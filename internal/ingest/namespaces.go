package ingest

import (
	"errors"

	"github.com/outrigger-mesh/outrigger/internal/annotation"
	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

// namespaces finds those of the mesh and what holds in them.
func (b *builder) namespaces() {
	b.logs = map[string]mesh.AccessLog{}
	b.inMesh, b.traffic, b.namespaceWords = map[string]mesh.Namespace{}, map[string]mesh.Traffic{}, map[string]*namespaceWord{}
	for _, ns := range b.objs.Namespaces {
		if ns.Name == "" || b.member(ns.Name) || annotation.IsSystem(ns.Name, b.opts.SystemNamespace) || !annotation.InMesh(ns.Labels, b.opts.OSMMeshName) {
			continue
		}
		object := ref("v1", "Namespace", ns)
		b.checked(object, annotation.CheckNamespace(ns.Annotations))
		n := mesh.Namespace{Name: ns.Name}
		n.Mode, _ = annotation.NamespaceMode(ns.Annotations, b.opts.Mode)
		n.AllowEgress, _ = annotation.NamespaceEgress(ns.Annotations, b.opts.AllowEgress)
		mtls, _ := annotation.NamespaceMTLS(ns.Annotations)
		n.PlainText, n.MutualTLSOnly = mtls == annotation.Lenient, mtls == annotation.Strict
		from, _ := annotation.NamespaceAllowFrom(ns.Annotations)
		b.namespaceWords[ns.Name] = &namespaceWord{ref: object, mode: n.Mode, mtls: mtls, from: from}
		b.logs[ns.Name], _, _ = annotation.ParseAccessLog(annotation.Namespace, ns.Annotations)
		if _, said := ns.Annotations[annotation.TrafficPolicy]; said {
			n.ModeBy = "Namespace " + ns.Name + " annotation"
		}
		b.traffic[ns.Name] = annotation.ParseTraffic(ns.Annotations, mesh.Traffic{})
		b.inMesh[ns.Name] = n
		b.parts.Namespaces = append(b.parts.Namespaces, n)
	}
}

// member reports whether a namespace is in the mesh.
func (b *builder) member(namespace string) bool {
	_, ok := b.inMesh[namespace]
	return ok
}

// checked reports what is wrong with the annotations of an object, and what holds
// instead.
func (b *builder) checked(object ObjectRef, errs []error) {
	for _, err := range errs {
		var e *annotation.Error
		if errors.As(err, &e) {
			b.found.add(object, BadAnnotation, "%v; %s", e, e.Otherwise)
		}
	}
}
