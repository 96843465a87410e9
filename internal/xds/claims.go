package xds

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

// claims say to which bundle an address belongs that several could listen at:
// two headless services may have the same pods, and Envoy refuses the second
// listener. A ClusterIP goes before endpoints, then the first by name wins.
type claims map[netip.AddrPort]mesh.PortName

// claimsOf takes bundles sorted by name.
func claimsOf(bundles []*mesh.Bundle) claims {
	c := make(claims, len(bundles))
	for _, headless := range []bool{false, true} {
		for _, b := range bundles {
			if b.Headless != headless {
				continue
			}
			for _, a := range listensAt(b) {
				if _, ok := c[a]; !ok {
					c[a] = b.Name
				}
			}
		}
	}
	return c
}

// claim returns the addresses that belong to another bundle, and what they add
// to the key of this one.
func (c claims) claim(b *mesh.Bundle) (lost map[netip.AddrPort]bool, key string) {
	var list []netip.AddrPort
	for _, a := range listensAt(b) {
		if c[a] != b.Name {
			list = append(list, a)
		}
	}
	if len(list) == 0 {
		return nil, ""
	}
	slices.SortFunc(list, netip.AddrPort.Compare)
	lost = map[netip.AddrPort]bool{}
	var s strings.Builder
	for _, a := range list {
		lost[a] = true
		fmt.Fprintf(&s, " -%s", a)
	}
	return lost, s.String()
}

// listensAt returns the addresses that a bundle would have listeners at.
func listensAt(b *mesh.Bundle) []netip.AddrPort {
	if !b.Headless {
		return clusterAddresses(b)
	}
	out := make([]netip.AddrPort, len(b.Endpoints))
	for i, ep := range b.Endpoints {
		out[i] = netip.AddrPortFrom(ep.Address, ep.Port)
	}
	return out
}
