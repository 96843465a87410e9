package xds

import (
	"net/netip"
	"testing"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

// TestConflicts holds that an address goes to whom it belongs, not to whose name
// comes first.
func TestConflicts(t *testing.T) {
	address := netip.MustParseAddrPort("10.0.0.1:80")
	owner := mesh.Identity{Namespace: "zzz", ServiceAccount: "db"}
	headless := func(namespace string, who mesh.Identity) *mesh.Bundle {
		return &mesh.Bundle{
			Name: mesh.PortName{ServiceName: mesh.ServiceName{Namespace: namespace, Name: "db"}, Port: 80}, Headless: true,
			Endpoints: []mesh.Endpoint{{Address: address.Addr(), Port: address.Port(), Identity: who}},
		}
	}
	service := &mesh.Bundle{
		Name:      mesh.PortName{ServiceName: mesh.ServiceName{Namespace: "zzz", Name: "web"}, Port: 80},
		Addresses: []netip.Addr{address.Addr()},
	}
	cases := map[string]struct {
		reason  string
		bundles []*mesh.Bundle // by name
		winner  int
	}{
		"a written address and a pod": {reason: "nobody takes a pod's place", bundles: []*mesh.Bundle{headless("aaa", mesh.Identity{}), headless("zzz", owner)}, winner: 1},
		"two services of one pod":     {reason: "the first by name", bundles: []*mesh.Bundle{headless("aaa", owner), headless("zzz", owner)}, winner: 0},
		"a pod and a ClusterIP":       {reason: "a ClusterIP is the Service's own", bundles: []*mesh.Bundle{headless("aaa", owner), service}, winner: 1},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			lost := conflicts(tc.bundles)
			for i, b := range tc.bundles {
				if lost[b][address] != (i != tc.winner) {
					t.Errorf("%s: bundle %s lost it: %t", tc.reason, b.Name, lost[b][address])
				}
			}
		})
	}
}
