package iptables

import (
	"net/netip"
	"slices"
)

// Redirects tells whether a TCP connection of the given user to an address
// outside the pod goes to the outbound port. It is Rules in another form, for
// those who need one answer: which address proves that the rules work, and why a
// call does not pass the proxy.
func (s Settings) Redirects(destination netip.AddrPort, uid uint32) bool {
	s = s.withDefaults()
	addr := destination.Addr().Unmap()
	family := IPv4
	if addr.Is6() {
		family = IPv6
	}
	within := func(cidrs []netip.Prefix) bool {
		return slices.ContainsFunc(cidrs, func(c netip.Prefix) bool { return c.Contains(addr) })
	}
	switch {
	case addr.IsLoopback(),
		uid == s.ProxyUID,
		slices.Contains(s.ExcludeUIDs, uid),
		within(s.ExcludeOutboundCIDRs),
		slices.Contains(s.ExcludeOutboundPorts, destination.Port()):
		return false
	case len(s.IncludeOutboundCIDRs) > 0:
		return within(s.IncludeOutboundCIDRs)
	default:
		return !within(family.direct())
	}
}
