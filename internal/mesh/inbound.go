package mesh

import (
	"cmp"
	"slices"
	"strings"
)

// inbound returns what w serves. Workloads of equal identity and ports share it.
func (s *Snapshot) inbound(w *Workload) *Inbound {
	key := w.Identity.String() + string(w.AccessLog) + text(w.Ports)
	return s.inbounds.get(key, func() *Inbound {
		in := &Inbound{Identity: w.Identity, OldTLS: s.Settings().OldTLS, Traced: s.traced(), AccessLog: w.AccessLog}
		in.TrustDomain, in.AlsoTrusted = s.trust.callerDomains()
		for _, p := range w.Ports {
			in.Ports = append(in.Ports, s.inboundPort(w.Identity, p))
		}
		in.Key = digest(in)
		return in
	})
}

func (s *Snapshot) inboundPort(server Identity, p WorkloadPort) InboundPort {
	policy := s.policy(server.Namespace, p.Policy)
	out := InboundPort{
		Port: p.Port, Protocol: p.Protocol, AccessLog: p.AccessLog, Sampling: s.sampling(p.Sampling),
		Mode: policy.Mode, ModeBy: cmp.Or(policy.ModeBy, s.namespaces[server.Namespace].ModeBy),
	}
	if out.Mode == Permissive {
		out.PlainText, out.PlainTextBy = policy.PlainText, policy.PlainTextBy
		return out
	}
	rules := ruleSet{}
	for _, g := range policy.Grants {
		if p.Protocol != TCP {
			rules.add(g.Source, HTTPMatch{}, g.Callers, g.Groups)
		}
		if !p.Protocol.IsHTTP() {
			out.Callers = append(out.Callers, g.Callers...)
			out.Groups = append(out.Groups, g.Groups...)
		}
	}
	for _, g := range s.byServer[server] {
		if g.opensHTTP(p.Port, p.Protocol) {
			for _, m := range g.HTTP {
				rules.add(g.Source, m, g.Callers, nil)
			}
		}
		if g.opensTCP(p.Port, p.Protocol) {
			out.Callers = append(out.Callers, g.Callers...)
		}
	}
	out.Rules = rules.sorted()
	out.Callers = set(out.Callers, Identity.Compare)
	out.Groups = set(out.Groups, cmp.Compare)
	return out
}

// opensHTTP reports whether g allows requests on a port of its server.
func (g *Grant) opensHTTP(port uint16, p Protocol) bool {
	return p != TCP && len(g.HTTP) > 0 && (len(g.Ports) == 0 || slices.Contains(g.Ports, port))
}

// opensTCP reports whether g allows connections to a port of its server.
//
// On a port whose protocol is sniffed, a grant that also has HTTP rules opens no
// TCP: there its ports say where the rules hold, and a caller that does not look
// like HTTP would get round them.
func (g *Grant) opensTCP(port uint16, p Protocol) bool {
	return !p.IsHTTP() && !g.Narrow && slices.Contains(g.Ports, port) && (p == TCP || len(g.HTTP) == 0)
}

// opens reports whether g allows anything on a port of its server.
func (g *Grant) opens(port uint16, p Protocol) bool {
	return g.opensHTTP(port, p) || g.opensTCP(port, p)
}

// A ruleSet has one rule for each match of each object, so that a request that
// is allowed can be told by which.
type ruleSet map[string]*Rule

func (r ruleSet) add(source string, m HTTPMatch, callers []Identity, groups []Group) {
	if len(callers)+len(groups) == 0 {
		return // nobody
	}
	key := source + "\n" + text(m)
	if r[key] == nil {
		r[key] = &Rule{Source: source, Match: m}
	}
	r[key].Callers = append(r[key].Callers, callers...)
	r[key].Groups = append(r[key].Groups, groups...)
}

// sorted returns the rules, the most specific first.
func (r ruleSet) sorted() []Rule {
	var rules []Rule
	for _, m := range r {
		m.Callers, m.Groups = set(m.Callers, Identity.Compare), set(m.Groups, cmp.Compare)
		rules = append(rules, *m)
	}
	slices.SortFunc(rules, func(a, b Rule) int { return cmp.Or(a.Match.compare(b.Match), strings.Compare(a.Source, b.Source)) })
	return rules
}
