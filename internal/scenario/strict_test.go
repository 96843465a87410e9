package scenario

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/outrigger-mesh/outrigger/internal/ingest"
	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

// TestLessIsStricter takes each policy object out of each story, in turn, and
// makes it unreadable, in turn: nothing may be allowed then that was not allowed
// before. Without a TrafficTarget that overrides an allow-from, that holds again, and
// nothing else.
func TestLessIsStricter(t *testing.T) {
	for _, s := range Stories(t) {
		t.Run(s.Name, func(t *testing.T) {
			before := allowed(s.Snapshot)
			alone, _ := ingest.Build(changed(s.Objects, func(c *ingest.Objects) { c.TrafficTargets = nil }), s.Options)
			overridden := allowed(alone)
			for name, objs := range damaged(s.Objects) {
				snap, _ := ingest.Build(objs, s.Options)
				gone := strings.HasPrefix(name, "TrafficTarget ") && strings.HasSuffix(name, " is gone")
				for what, under := range allowed(snap) {
					if !has(before, what) && !has(before, under) && (!gone || !has(overridden, what)) {
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
		faulty.Annotations = faultyAnnotations()
		out["Namespace "+o.Name+" has bad annotations"] = changed(objs, func(c *ingest.Objects) { c.Namespaces[i] = faulty })
	}
	for i, o := range objs.Services {
		faulty := o.DeepCopy()
		faulty.Annotations = faultyAnnotations()
		out["Service "+o.Namespace+"/"+o.Name+" has bad annotations"] = changed(objs, func(c *ingest.Objects) { c.Services[i] = faulty })
	}
	for i, o := range objs.Pods {
		faulty := o.DeepCopy()
		faulty.Annotations = faultyAnnotations()
		out["Pod "+o.Namespace+"/"+o.Name+" has bad annotations"] = changed(objs, func(c *ingest.Objects) { c.Pods[i] = faulty })
	}
	return out
}

// faultyAnnotations says nothing that means anything about who may call whom.
func faultyAnnotations() map[string]string {
	return map[string]string{
		"outrigger.dev/traffic-policy": "?", "outrigger.dev/egress": "?", "outrigger.dev/mtls": "?", "outrigger.dev/allow-from": "?",
	}
}

// changed returns objs with a change, and leaves objs alone.
func changed(objs ingest.Objects, change func(*ingest.Objects)) ingest.Objects {
	objs.TrafficTargets = slices.Clone(objs.TrafficTargets)
	objs.HTTPRouteGroups = slices.Clone(objs.HTTPRouteGroups)
	objs.TCPRoutes = slices.Clone(objs.TCPRoutes)
	objs.Namespaces = slices.Clone(objs.Namespaces)
	objs.Services = slices.Clone(objs.Services)
	objs.Pods = slices.Clone(objs.Pods)
	change(&objs)
	return objs
}

// allowed lists all that the mesh lets happen: what servers accept, and whom
// clients call. Each has what it is a part of, if anything: what lets everyone in
// lets some in too.
func allowed(snap *mesh.Snapshot) map[string]string {
	out := map[string]string{}
	for _, id := range snap.Proxies() {
		v, _ := snap.View(id)
		for _, p := range v.Inbound.Ports {
			everyone := fmt.Sprintf("%s serves everyone on %d", id, p.Port)
			if p.Mode == mesh.Permissive {
				out[everyone] = ""
			}
			if p.PlainText {
				out[fmt.Sprintf("%s takes plain text on %d", id, p.Port)] = ""
			}
			for _, g := range p.Groups {
				out[fmt.Sprintf("%s lets %s connect to %d", id, g, p.Port)] = everyone
			}
			for _, c := range p.Callers {
				out[fmt.Sprintf("%s lets %s connect to %d", id, c, p.Port)] = everyone
			}
			for _, r := range p.Rules {
				for _, g := range r.Groups {
					out[fmt.Sprintf("%s lets %s request %v of %d", id, g, r.Match, p.Port)] = everyone
				}
				for _, c := range r.Callers {
					out[fmt.Sprintf("%s lets %s request %v of %d", id, c, r.Match, p.Port)] = everyone
				}
			}
		}
		for _, b := range v.Outbound.Bundles {
			out[fmt.Sprintf("%s calls %s", id, b.Name)] = ""
			for _, e := range b.Endpoints {
				out[fmt.Sprintf("%s calls %s at %s as %s", id, b.Name, e.Address, e.Identity)] = ""
			}
			for _, i := range b.Identities {
				out[fmt.Sprintf("%s accepts %s for %s", id, i, b.Name)] = ""
			}
		}
	}
	return out
}

func has(m map[string]string, what string) bool { _, ok := m[what]; return ok && what != "" }
