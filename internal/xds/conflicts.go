package xds

import (
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

// lost is the addresses of a bundle that belong to another one.
type lost map[netip.AddrPort]bool

// conflicts settles which bundle listens at an address that several have: two
// headless services may have the same pods, and Envoy refuses the second
// listener. A ClusterIP goes before endpoints, then the first by name wins.
// Bundles are sorted by name; those that lose nothing are not in the result.
func conflicts(bundles []*mesh.Bundle) map[*mesh.Bundle]lost {
	owner := make(map[netip.AddrPort]*mesh.Bundle, len(bundles))
	losers := map[*mesh.Bundle]lost{}
	for _, headless := range []bool{false, true} {
		for _, b := range bundles {
			if b.Headless != headless {
				continue
			}
			for a := range listensAt(b) {
				first, taken := owner[a]
				switch {
				case !taken:
					owner[a] = b
				case first != b && losers[b] == nil:
					losers[b] = lost{a: true}
				case first != b:
					losers[b][a] = true
				}
			}
		}
	}
	return losers
}

// key is what the loss adds to the key of a bundle.
func (l lost) key() string {
	if len(l) == 0 {
		return ""
	}
	var s strings.Builder
	for _, a := range slices.SortedFunc(maps.Keys(l), netip.AddrPort.Compare) {
		s.WriteString(" -" + a.String())
	}
	return s.String()
}

// without returns the addresses that are left.
func (l lost) without(addresses iter.Seq[netip.AddrPort]) []netip.AddrPort {
	return slices.DeleteFunc(slices.Collect(addresses), func(a netip.AddrPort) bool { return l[a] })
}

// listensAt yields the addresses that a bundle would have listeners at.
func listensAt(b *mesh.Bundle) iter.Seq[netip.AddrPort] {
	return func(yield func(netip.AddrPort) bool) {
		if b.Headless {
			for _, ep := range b.Endpoints {
				if !yield(netip.AddrPortFrom(ep.Address, ep.Port)) {
					return
				}
			}
			return
		}
		for _, a := range b.Addresses {
			if !yield(netip.AddrPortFrom(a, b.Name.Port)) {
				return
			}
		}
	}
}
