package mesh

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestInboundPort(t *testing.T) {
	server := Identity{Namespace: "shop", ServiceAccount: "web"}
	ann, bob := Identity{Namespace: "shop", ServiceAccount: "ann"}, Identity{Namespace: "shop", ServiceAccount: "bob"}
	get := HTTPMatch{Methods: []string{"GET"}}
	all := HTTPMatch{}
	grant := func(source string, http []HTTPMatch, ports []uint16, callers ...Identity) Grant {
		return Grant{Source: source, Server: server, Callers: callers, HTTP: http, Ports: ports}
	}
	cases := map[string]struct {
		reason string
		grants []Grant
		port   WorkloadPort
		want   InboundPort
	}{
		"NoGrant": {
			reason: "what no grant speaks of is closed",
			port:   WorkloadPort{Port: 80, Protocol: HTTP},
			want:   InboundPort{Port: 80, Protocol: HTTP},
		},
		"HTTPOpensEveryHTTPPort": {
			reason: "without ports, HTTP rules hold on each HTTP port",
			grants: []Grant{grant("a", []HTTPMatch{get}, nil, ann)},
			port:   WorkloadPort{Port: 80, Protocol: GRPC},
			want:   InboundPort{Port: 80, Protocol: GRPC, Rules: []Rule{{Source: "a", Match: get, Callers: []Identity{ann}}}},
		},
		"HTTPOpensNoTCP": {
			reason: "an HTTP rule never opens a TCP port",
			grants: []Grant{grant("a", []HTTPMatch{all}, nil, ann)},
			port:   WorkloadPort{Port: 80, Protocol: TCP},
			want:   InboundPort{Port: 80, Protocol: TCP},
		},
		"PortsOpenNoHTTP": {
			reason: "a port alone allows no request",
			grants: []Grant{grant("a", nil, []uint16{80}, ann)},
			port:   WorkloadPort{Port: 80, Protocol: HTTP},
			want:   InboundPort{Port: 80, Protocol: HTTP},
		},
		"PortsNarrowHTTP": {
			reason: "ports say where HTTP rules hold",
			grants: []Grant{grant("a", []HTTPMatch{all}, []uint16{81}, ann)},
			port:   WorkloadPort{Port: 80, Protocol: HTTP},
			want:   InboundPort{Port: 80, Protocol: HTTP},
		},
		"BothOpenATCPPort": {
			reason: "the port is named, and it speaks TCP",
			grants: []Grant{grant("a", []HTTPMatch{get}, []uint16{80}, ann)},
			port:   WorkloadPort{Port: 80, Protocol: TCP},
			want:   InboundPort{Port: 80, Protocol: TCP, Callers: []Identity{ann}},
		},
		"BothOnASniffedPort": {
			reason: "there, TCP would get round the HTTP rules",
			grants: []Grant{grant("a", []HTTPMatch{get}, []uint16{80}, ann), grant("b", nil, []uint16{80}, bob)},
			port:   WorkloadPort{Port: 80},
			want:   InboundPort{Port: 80, Rules: []Rule{{Source: "a", Match: get, Callers: []Identity{ann}}}, Callers: []Identity{bob}},
		},
		"EachObjectHasItsOwn": {
			reason: "one rule for each match of an object, so that it is known which object allowed a request",
			grants: []Grant{grant("b", []HTTPMatch{get, all}, nil, bob), grant("b", []HTTPMatch{get, all}, nil, ann), grant("a", []HTTPMatch{get}, nil, ann)},
			port:   WorkloadPort{Port: 80, Protocol: HTTP},
			want: InboundPort{Port: 80, Protocol: HTTP, Rules: []Rule{
				{Source: "a", Match: get, Callers: []Identity{ann}},
				{Source: "b", Match: get, Callers: []Identity{ann, bob}},
				{Source: "b", Match: all, Callers: []Identity{ann, bob}},
			}},
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			w := Workload{ID: ProxyID{Namespace: "shop", Pod: "web-0", UID: "u"}, Identity: server, Ports: []WorkloadPort{c.port}}
			s := must(t, Parts{
				Settings: Settings{TrustDomain: "cluster.local"}, Namespaces: []Namespace{{Name: "shop"}},
				Workloads: []Workload{w}, Grants: c.grants,
			})
			v, _ := s.View(w.ID)
			if d := cmp.Diff([]InboundPort{c.want}, v.Inbound.Ports, compareAddrs()); d != "" {
				t.Errorf("%s (-want +got):\n%s", c.reason, d)
			}
		})
	}
}

func TestPermissivePortsHaveNoRules(t *testing.T) {
	parts := generate(20)
	parts.Namespaces[0].Mode = Permissive
	s := must(t, parts)
	for _, w := range s.Dump().Workloads {
		v, _ := s.View(w.ID)
		for _, p := range v.Inbound.Ports {
			if p.Mode != s.namespaces[w.ID.Namespace].Mode || p.Mode == Permissive && (p.Rules != nil || p.Callers != nil) {
				t.Errorf("%s: port %+v", w.ID, p)
			}
		}
	}
}
