package scenario

import (
	"fmt"
	"slices"
	"testing"

	"github.com/outrigger-mesh/outrigger/internal/ingest"
	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

// TestLessIsStricter takes each policy object out of each story, in turn, and
// makes it unreadable, in turn: nothing may be allowed then that was not allowed
// before.
func TestLessIsStricter(t *testing.T) {
	for _, s := range Stories(t) {
		t.Run(s.Name, func(t *testing.T) {
			before := allowed(s.Snapshot)
			for name, objs := range damaged(s.Objects) {
				snap, _ := ingest.Build(objs, s.Options)
				for what := range allowed(snap) {
					if !before[what] {
						t.Errorf("%s: now allowed: %s", name, what)
					}
				}
			}
		})
	}
}

// damaged returns objs without one object, or with one that is faulty, in every
// way.
func damaged(objs ingest.Objects) map[string]ingest.Objects {
	out := map[string]ingest.Objects{}
	for i, o := range objs.TrafficTargets {
		name := "TrafficTarget " + o.Namespace + "/" + o.Name
		out[name+" is gone"] = changed(objs, func(c *ingest.Objects) { c.TrafficTargets = slices.Delete(c.TrafficTargets, i, i+1) })
		for j, rule := range o.Spec.Rules {
			faulty := o.DeepCopy()
			faulty.Spec.Rules[j].Matches = nil
			out[name+" lists no match of "+rule.Name] = changed(objs, func(c *ingest.Objects) { c.TrafficTargets[i] = faulty })
			other := o.DeepCopy()
			other.Spec.Rules[j].Kind = "UDPRoute"
			out[name+" has another kind for "+rule.Name] = changed(objs, func(c *ingest.Objects) { c.TrafficTargets[i] = other })
		}
	}
	for i, o := range objs.HTTPRouteGroups {
		name := "HTTPRouteGroup " + o.Namespace + "/" + o.Name
		out[name+" is gone"] = changed(objs, func(c *ingest.Objects) { c.HTTPRouteGroups = slices.Delete(c.HTTPRouteGroups, i, i+1) })
		for j, match := range o.Spec.Matches {
			faulty := o.DeepCopy()
			faulty.Spec.Matches[j].PathRegex = "("
			out[name+" has a bad expression in "+match.Name] = changed(objs, func(c *ingest.Objects) { c.HTTPRouteGroups[i] = faulty })
		}
	}
	for i, o := range objs.TCPRoutes {
		name := "TCPRoute " + o.Namespace + "/" + o.Name
		out[name+" is gone"] = changed(objs, func(c *ingest.Objects) { c.TCPRoutes = slices.Delete(c.TCPRoutes, i, i+1) })
		empty := o.DeepCopy()
		empty.Spec.Matches.Ports = nil
		out[name+" is empty"] = changed(objs, func(c *ingest.Objects) { c.TCPRoutes[i] = empty })
	}
	for i, o := range objs.Namespaces {
		faulty := o.DeepCopy()
		faulty.Annotations = map[string]string{"outrigger.dev/traffic-policy": "?", "outrigger.dev/egress": "?"}
		out["Namespace "+o.Name+" has bad annotations"] = changed(objs, func(c *ingest.Objects) { c.Namespaces[i] = faulty })
	}
	return out
}

// changed returns objs with a change, and leaves objs alone.
func changed(objs ingest.Objects, change func(*ingest.Objects)) ingest.Objects {
	objs.TrafficTargets = slices.Clone(objs.TrafficTargets)
	objs.HTTPRouteGroups = slices.Clone(objs.HTTPRouteGroups)
	objs.TCPRoutes = slices.Clone(objs.TCPRoutes)
	objs.Namespaces = slices.Clone(objs.Namespaces)
	change(&objs)
	return objs
}

// allowed lists all that the mesh lets happen: what servers accept, and whom
// clients call.
func allowed(snap *mesh.Snapshot) map[string]bool {
	out := map[string]bool{}
	for _, id := range snap.Proxies() {
		v, _ := snap.View(id)
		for _, p := range v.Inbound.Ports {
			if p.Mode == mesh.Permissive {
				out[fmt.Sprintf("%s serves everyone on %d", id, p.Port)] = true
			}
			for _, c := range p.Callers {
				out[fmt.Sprintf("%s lets %s connect to %d", id, c, p.Port)] = true
			}
			for _, r := range p.Rules {
				for _, c := range r.Callers {
					out[fmt.Sprintf("%s lets %s request %v of %d", id, c, r.Match, p.Port)] = true
				}
			}
		}
		for _, b := range v.Outbound.Bundles {
			out[fmt.Sprintf("%s calls %s", id, b.Name)] = true
			for _, e := range b.Endpoints {
				out[fmt.Sprintf("%s calls %s at %s as %s", id, b.Name, e.Address, e.Identity)] = true
			}
			for _, i := range b.Identities {
				out[fmt.Sprintf("%s accepts %s for %s", id, i, b.Name)] = true
			}
		}
	}
	return out
}
