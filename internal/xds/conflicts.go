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
// listener. A ClusterIP goes before endpoints, and an endpoint with an identity
// before nobody's, so that none can take another's address in plain text; then the
// first by name wins. Bundles are sorted by name; those that lose nothing are not in
// the result.
func conflicts(bundles []*mesh.Bundle) map[*mesh.Bundle]lost {
	owner := make(map[netip.AddrPort]*mesh.Bundle, len(bundles))
	losers := map[*mesh.Bundle]lost{}
	for _, by := range []claim{byService, byIdentity, byNobody} {
		for _, b := range bundles {
			for a := range listensAt(b, by) {
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

// A claim is by what right a bundle has an address.
type claim int

const (
	byService  claim = iota // it is the Service's own
	byIdentity              // a pod of the mesh has it
	byNobody                // something else has it
)

// listensAt yields the addresses that a bundle would have listeners at by one
// right.
func listensAt(b *mesh.Bundle, by claim) iter.Seq[netip.AddrPort] {
	return func(yield func(netip.AddrPort) bool) {
		if by == byService && !b.Headless {
			for _, a := range b.Addresses {
				if !yield(netip.AddrPortFrom(a, b.Name.Port)) {
					return
				}
			}
		}
		// The API server is known by its endpoints' addresses too.
		if !b.Headless && !b.Passthrough || by == byService {
			return
		}
		for _, ep := range b.Endpoints {
			if ep.Identity.IsZero() == (by == byNobody) && !yield(netip.AddrPortFrom(ep.Address, ep.Port)) {
				return
			}
		}
	}
}

// listens yields all addresses that a bundle would have listeners at.
func listens(b *mesh.Bundle) iter.Seq[netip.AddrPort] {
	return func(yield func(netip.AddrPort) bool) {
		for _, by := range []claim{byService, byIdentity, byNobody} {
			for a := range listensAt(b, by) {
				if !yield(a) {
					return
				}
			}
		}
	}
}
