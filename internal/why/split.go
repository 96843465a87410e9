package why

import (
	"fmt"
	"slices"
	"strings"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

// noteLeftOut names the backends of a split that get nothing of a caller's calls to a
// port, and why.
func (c *call) noteLeftOut(s *mesh.Split, apex *mesh.Bundle, r *mesh.Route) {
	var left []string
	for _, k := range s.LeftOut {
		left = append(left, k.Service+" ("+k.Why+")")
	}
	for _, k := range s.Backends {
		name := mesh.PortName{ServiceName: mesh.ServiceName{Namespace: s.Apex.Namespace, Name: k.Service}, Port: apex.Name.Port}
		if why := c.whyLeftOut(name, apex, r); why != "" {
			left = append(left, k.Service+" ("+why+")")
		}
	}
	if len(left) == 0 {
		return
	}
	slices.Sort(left)
	share := "its share goes"
	if len(left) > 1 {
		share = "their shares go"
	}
	c.note("%s leaves out %s; %s to the others.", s.Source, strings.Join(left, ", "), share)
}

// whyLeftOut says why a backend that could take calls gets none of this caller's to
// this port. It says nothing of one that gets its share, be that zero.
func (c *call) whyLeftOut(name mesh.PortName, apex *mesh.Bundle, r *mesh.Route) string {
	found := c.services(func(m *mesh.Service) bool { return m.Name == name })
	if len(found) == 0 {
		return fmt.Sprintf("it has no port %d", name.Port)
	}
	of := c.services(func(m *mesh.Service) bool { return m.Name == apex.Name })
	m := found[0]
	switch {
	case len(of) > 0 && !mesh.Splittable(of[0], m):
		return fmt.Sprintf("its port %d is headless or speaks another protocol", name.Port)
	case r != nil && slices.ContainsFunc(r.Shares, func(s mesh.Share) bool { return s.To == name }):
		return ""
	case r == nil && c.reaches(apex, m):
		return ""
	case m.Unserved:
		return "it has no pod"
	case len(m.Endpoints) == 0 && r == nil:
		return "it has no endpoint"
	default:
		return "it may not be called by " + c.caller.Identity.String()
	}
}

// reaches reports whether a TCP bundle has an endpoint of a backend, or would if the
// backend's weight were not zero.
func (c *call) reaches(apex *mesh.Bundle, backend *mesh.Service) bool {
	endpoints := apex.Endpoints
	if own := c.bundleNamed(backend.Name); own != nil {
		endpoints = own.Endpoints
	}
	return slices.ContainsFunc(backend.Endpoints, func(e mesh.Endpoint) bool {
		return slices.ContainsFunc(endpoints, func(f mesh.Endpoint) bool { return e.Address == f.Address && e.Port == f.Port })
	})
}
