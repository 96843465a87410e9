package iptables

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// A Family is a version of the Internet Protocol; each has tables of its own.
type Family uint8

// The families.
const (
	IPv4 Family = iota
	IPv6
)

// String is "IPv4" or "IPv6".
func (f Family) String() string {
	if f == IPv6 {
		return "IPv6"
	}
	return "IPv4"
}

// Source is the address inside the pod from which Envoy and the agent reach the
// application, so that the rules know their calls from everybody else's. It has
// to exist: 127.0.0.6 always does, ::6 must be given to lo.
func (f Family) Source() netip.Addr {
	if f == IPv6 {
		return netip.AddrFrom16([16]byte{15: 6})
	}
	return netip.AddrFrom4([4]byte{127, 0, 0, 6})
}

// Own is the address by which Envoy calls the pod's own, which its configuration
// does not name because replicas share that. Only calls from Source are led on.
// Like Source it has to be there.
func (f Family) Own() netip.Addr {
	if f == IPv6 {
		return netip.AddrFrom16([16]byte{15: 7})
	}
	return netip.AddrFrom4([4]byte{127, 0, 0, 7})
}

// loopback is what an application means by "localhost".
func (f Family) loopback() netip.Prefix {
	if f == IPv6 {
		return netip.PrefixFrom(netip.IPv6Loopback(), 128)
	}
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 32)
}

// direct are the ranges of the node and its cloud: instance metadata and
// workload credentials (169.254.169.254, 169.254.170.23, and fd00:ec2:: on
// AWS), the node's DNS cache (169.254.20.10). No workload and no Service lives
// there, so no policy of the mesh is about them, while a pod that loses its
// credentials because egress is denied would make every user write the same
// exclusion. Whoever wants them to pass Envoy names them in
// IncludeOutboundCIDRs; whoever wants them closed needs a NetworkPolicy, as
// egress through the proxy is cooperative anyway.
func (f Family) direct() []netip.Prefix {
	if f == IPv6 {
		return []netip.Prefix{
			netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfe, 0x80}), 10),
			netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0x00, 0x0e, 0xc2}), 32),
		}
	}
	return []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{169, 254}), 16)}
}

// of keeps the ranges that belong to the family.
func (f Family) of(cidrs []netip.Prefix) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(cidrs), func(c netip.Prefix) bool {
		return c.Addr().Is6() != (f == IPv6)
	})
}

// Our chains in the nat table. The prefix tells them from those of others.
const (
	outboundChain = "OUTRIGGER_OUTBOUND"
	inboundChain  = "OUTRIGGER_INBOUND"
)

// The rules that lead to our chains. Only TCP: UDP, DNS queries among it, goes
// as it always did.
const (
	outboundJump = "-A OUTPUT -p tcp -j " + outboundChain
	inboundJump  = "-A PREROUTING -p tcp -j " + inboundChain
)

// Rules returns the nat rules of one family as one transaction for
// iptables-restore or ip6tables-restore with --noflush. The lines that start
// with # explain the rules and are ignored by both.
//
// Rules are written as iptables-save prints them, so that Differences can
// compare the two. Declaring our chains empties them, so applying the text again
// changes nothing in them; but it would add the two jumps again: give it to
// Changes before it is applied.
//
// s must be valid (Settings.Validate). Equal settings give equal text, whatever
// the order of their lists.
func Rules(s Settings, f Family) string {
	s = s.withDefaults()
	var r ruleset
	fmt.Fprintf(&r, "*nat\n:%s - [0:0]\n:%s - [0:0]\n", inboundChain, outboundChain)
	r.inbound(s)
	r.outbound(s, f)
	r.because("Nothing goes to the chains before they are complete, as all of this is one transaction.")
	fmt.Fprintf(&r, "%s\n%s\nCOMMIT\n", inboundJump, outboundJump)
	return r.String()
}

// A ruleset is text for iptables-restore that grows.
type ruleset struct{ strings.Builder }

// because says in the text itself why the next rules are there: in a dump they
// are then explained without needing the kernel's comment match.
func (r *ruleset) because(reason string) { fmt.Fprintf(r, "# %s\n", reason) }

func (r *ruleset) add(chain, rule string, args ...any) {
	fmt.Fprintf(r, "-A %s %s\n", chain, fmt.Sprintf(rule, args...))
}

// inbound fills the chain of what reaches the pod from outside.
func (r *ruleset) inbound(s Settings) {
	r.because("The agent answers probes and metrics itself: the kubelet and Prometheus have no certificate.")
	for _, port := range s.AgentPorts {
		r.returnPort(inboundChain, port)
	}
	if ports := without(s.ExcludeInboundPorts, s.AgentPorts); len(ports) > 0 {
		r.because("The pod's owner opened these ports to callers outside the mesh.")
		for _, port := range ports {
			r.returnPort(inboundChain, port)
		}
	}
	// The sidecar's other ports are redirected like any: Envoy has no filter
	// chain for them on its inbound listener and closes the connection. Without
	// that, a neighbour could send through our outbound port with our identity.
	r.because("All else is Envoy's, which refuses the proxy's own ports: nobody outside may use its outbound side.")
	r.redirect(inboundChain, "", s.InboundPort)
}

// outbound fills the chain of what processes of the pod send. Order matters:
// the first rule that matches decides.
func (r *ruleset) outbound(s Settings, f Family) {
	if own, ok := s.own(f); ok {
		r.because("Envoy means the pod's own address, where applications may listen and nowhere else.")
		r.add(outboundChain, "-s %s -d %s -p tcp -j DNAT --to-destination %s",
			netip.PrefixFrom(f.Source(), f.Source().BitLen()), netip.PrefixFrom(f.Own(), f.Own().BitLen()), own)
	}

	// Envoy's inbound side and the agent's probes bind to this source. Without
	// the rule they would be sent into the inbound listener again, for ever.
	r.because("Calls of Envoy and the agent to the application, from an address that only they use.")
	r.add(outboundChain, "-s %s -o lo -j RETURN", netip.PrefixFrom(f.Source(), f.Source().BitLen()))

	// Envoy's outbound side chose this very pod as the endpoint of a Service.
	// The caller's policy and identity count there as they do between pods. The
	// exception keeps "localhost" of the agent and of Envoy what it says.
	r.because("The pod calls its own Service: what Envoy sends to the pod's own address comes in like anyone's.")
	r.add(outboundChain, "! -d %s -o lo -p tcp -m owner --uid-owner %d -j REDIRECT --to-ports %d", f.loopback(), s.ProxyUID, s.InboundPort)

	// The kernel routes all of 127.0.0.0/8, ::1 and the pod's addresses by lo, so
	// that no rule need name them.
	r.because("Processes of the pod among themselves, at localhost or at the pod's own address.")
	r.add(outboundChain, "-o lo -j RETURN")

	r.because("What Envoy and the agent send out has been through Envoy.")
	r.add(outboundChain, "-m owner --uid-owner %d -j RETURN", s.ProxyUID)

	if uids := without(s.ExcludeUIDs, []uint32{s.ProxyUID}); len(uids) > 0 {
		r.because("Users that the pod's owner left out, such as those of init containers.")
		for _, uid := range uids {
			r.add(outboundChain, "-m owner --uid-owner %d -j RETURN", uid)
		}
	}

	r.outboundRanges(s, f)
}

// outboundRanges ends the outbound chain: who gets here has left the pod, and
// only address and port decide. Exclusions come first, for they are exceptions.
func (r *ruleset) outboundRanges(s Settings, f Family) {
	if cidrs := f.of(s.ExcludeOutboundCIDRs); len(cidrs) > 0 {
		r.because("Addresses that the pod's owner left out.")
		for _, cidr := range cidrs {
			r.returnTo(cidr)
		}
	}
	if len(s.ExcludeOutboundPorts) > 0 {
		r.because("Ports that the pod's owner left out.")
		for _, port := range s.ExcludeOutboundPorts {
			r.returnPort(outboundChain, port)
		}
	}
	if len(s.IncludeOutboundCIDRs) > 0 {
		r.because("Only the addresses that the pod's owner named; everything else is left alone.")
		for _, cidr := range f.of(s.IncludeOutboundCIDRs) {
			r.redirect(outboundChain, to(cidr), s.OutboundPort)
		}
		return // the end of a chain is RETURN
	}
	r.because("The node and its cloud: credentials, metadata, the node's DNS cache.")
	for _, cidr := range f.direct() {
		r.returnTo(cidr)
	}
	r.because("All else is Envoy's.")
	r.redirect(outboundChain, "", s.OutboundPort)
}

// returnPort spends a rule on each port. A multiport match would hold no more
// than fifteen and be one more kernel module that can be missing; only the first
// packet of a connection is looked at, so the length costs nothing.
func (r *ruleset) returnPort(chain string, port uint16) {
	r.add(chain, "-p tcp -m tcp --dport %d -j RETURN", port)
}

func (r *ruleset) returnTo(cidr netip.Prefix) {
	r.add(outboundChain, "%s-j RETURN", to(cidr))
}

// redirect sends what matches to a port of the pod. REDIRECT needs the protocol
// in the same rule, and iptables-save puts it behind the address.
func (r *ruleset) redirect(chain, destination string, port uint16) {
	r.add(chain, "%s-p tcp -j REDIRECT --to-ports %d", destination, port)
}

// to is the match of a destination, with a space behind it; nothing for the
// range that holds every address, since iptables-save would not print it.
func to(cidr netip.Prefix) string {
	if cidr.Bits() == 0 {
		return ""
	}
	return "-d " + cidr.String() + " "
}

// without returns the members of a sorted list that are not in the other, whose
// rules stand already.
func without[N comparable](list, other []N) []N {
	return slices.DeleteFunc(slices.Clone(list), func(n N) bool { return slices.Contains(other, n) })
}
