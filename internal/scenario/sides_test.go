package scenario

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

// TestBothSidesAgree holds that a caller is told of a server exactly where the server
// lets it in: else one of the two would deny what the other allows. Whether the
// request itself is allowed is for the server alone.
func TestBothSidesAgree(t *testing.T) {
	for _, s := range Stories(t) {
		t.Run(s.Name, func(t *testing.T) {
			servers := serversOf(s)
			apexes := map[mesh.ServiceName]bool{}
			for _, split := range s.Snapshot.Dump().Splits {
				apexes[split.Apex] = true
			}
			for _, id := range s.Snapshot.Proxies() {
				v, _ := s.Snapshot.View(id)
				for _, svc := range s.Snapshot.Dump().Services {
					if !svc.InMesh || apexes[svc.Name.ServiceName] {
						continue
					}
					hinted := slices.ContainsFunc(svc.Endpoints, func(e mesh.Endpoint) bool { return len(e.ForZones)+len(e.ForNodes) > 0 })
					for _, e := range svc.Endpoints {
						server := servers[netip.AddrPortFrom(e.Address, e.Port)]
						if e.Identity.IsZero() || server != nil && server.Protocol != svc.Protocol {
							continue // nobody there decides, or the two Services disagree, which is a Problem
						}
						lets, told := server != nil && letsIn(*server, v.Outbound.Caller), calls(v.Outbound, svc.Name, e)
						if lets && !told && hinted {
							continue // others of the Service are nearer to this caller
						}
						if lets != told {
							t.Errorf("%s at %s:%d: the server lets %s in: %v; it is told of it: %v", svc.Name, e.Address, e.Port, id, lets, told)
						}
					}
				}
			}
		})
	}
}

// serversOf returns the served ports by address.
func serversOf(s Story) map[netip.AddrPort]*mesh.InboundPort {
	out := map[netip.AddrPort]*mesh.InboundPort{}
	for _, pod := range s.Objects.Pods {
		v, ok := s.Snapshot.View(mesh.ProxyID{Namespace: pod.Namespace, Pod: pod.Name, UID: string(pod.UID)})
		if !ok {
			continue
		}
		for _, ip := range pod.Status.PodIPs {
			for i, p := range v.Inbound.Ports {
				out[netip.AddrPortFrom(netip.MustParseAddr(ip.IP), p.Port)] = &v.Inbound.Ports[i]
			}
		}
	}
	return out
}

func letsIn(p mesh.InboundPort, caller mesh.Identity) bool {
	return p.Mode == mesh.Permissive || p.MayConnect(caller) || slices.ContainsFunc(p.Rules, func(r mesh.Rule) bool { return r.Has(caller) })
}

// calls reports whether a caller uses an endpoint of a Service, and would take its
// name.
func calls(o *mesh.Outbound, name mesh.PortName, e mesh.Endpoint) bool {
	return slices.ContainsFunc(o.Bundles, func(b *mesh.Bundle) bool {
		return b.Name == name && slices.Contains(b.Identities, e.Identity) &&
			slices.ContainsFunc(b.Endpoints, func(f mesh.Endpoint) bool { return f.Address == e.Address && f.Port == e.Port })
	})
}
