package mesh

import "slices"

// A place is where a caller is, as far as anything depends on it: its zone only if
// an endpoint is hinted for that zone, its node only if one is for that node. So
// callers in a mesh without hints have the zero place, and share what they see.
type place struct{ zone, node string }

// hints are the zones and nodes that endpoints are hinted for, and the Services
// whose calls depend on them, apexes of splits included.
type hints struct {
	zones, nodes map[string]bool
	services     []*Service
}

// near returns the place of a workload.
func (s *Snapshot) near(w *Workload) place {
	var out place
	if s.hints.zones[w.Zone] {
		out.zone = w.Zone
	}
	if s.hints.nodes[w.Node] {
		out.node = w.Node
	}
	return out
}

// indexHints needs the splits to be indexed.
func (s *Snapshot) indexHints() {
	s.hints = hints{zones: map[string]bool{}, nodes: map[string]bool{}}
	seen := map[PortName]bool{}
	add := func(svc *Service) {
		if svc != nil && !seen[svc.Name] && !svc.passthrough() {
			seen[svc.Name] = true
			s.hints.services = append(s.hints.services, svc)
		}
	}
	for i := range s.parts.Services {
		svc := &s.parts.Services[i]
		hinted := svc.NodeLocal
		for _, e := range svc.Endpoints {
			hinted = hinted || len(e.ForZones) > 0 || len(e.ForNodes) > 0
			for _, zone := range e.ForZones {
				s.hints.zones[zone] = true
			}
			for _, node := range e.ForNodes {
				s.hints.nodes[node] = true
			}
		}
		if !hinted || svc.Headless {
			continue
		}
		add(svc)
		for _, apex := range s.apexes[svc.Name.ServiceName] {
			add(s.services[PortName{ServiceName: apex, Port: svc.Name.Port}])
		}
	}
}

// nearest returns those of a Service's endpoints that are called from a place, as
// kube-proxy chooses them (CategorizeEndpoints and topologyModeFromHints in
// k8s.io/kubernetes/pkg/proxy/topology.go): if every ready endpoint is hinted for
// nodes and one for this node, those for this node; else if every ready endpoint is
// hinted for zones and one for this zone, those for this zone; else all. Of a Service
// whose traffic stays on its node, those of this node and no others. Draining
// endpoints stay: they get nothing while a ready one is left.
//
// What is called at a headless Service is the address that was dialled.
func (p place) nearest(svc *Service, in []Endpoint) []Endpoint {
	byNode := func(e Endpoint) []string { return e.ForNodes }
	byZone := func(e Endpoint) []string { return e.ForZones }
	switch {
	case svc.Headless:
		return in
	case svc.NodeLocal:
		return filter(in, func(e Endpoint) bool { return slices.Contains(e.ForNodes, p.node) })
	case fits(in, byNode, p.node):
		return filter(in, func(e Endpoint) bool { return e.Draining || slices.Contains(e.ForNodes, p.node) })
	case fits(in, byZone, p.zone):
		return filter(in, func(e Endpoint) bool { return e.Draining || slices.Contains(e.ForZones, p.zone) })
	default:
		return in
	}
}

// fits reports whether every ready endpoint has a hint of one kind, and one is for
// here.
func fits(in []Endpoint, hint func(Endpoint) []string, here string) bool {
	found := false
	for _, e := range in {
		switch {
		case e.Draining:
		case len(hint(e)) == 0:
			return false
		default:
			found = found || slices.Contains(hint(e), here)
		}
	}
	return found
}
