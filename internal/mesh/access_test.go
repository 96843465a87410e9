package mesh

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestGroups(t *testing.T) {
	cases := map[string]struct {
		reason string
		group  Group
		has    []Identity
		not    []Identity
	}{
		"Namespace": {
			"all of its accounts, and none of a namespace whose name begins alike", "shop",
			[]Identity{{"shop", "web"}, {"shop", "default"}},
			[]Identity{{"shop2", "web"}, {"sho", "p"}, {"web", "shop"}, {}},
		},
		"Everyone": {"nobody in particular included", Everyone, []Identity{{"shop", "web"}, {"a", "b"}, {}}, nil},
		"Nobody":   {"the zero group", "", nil, []Identity{{"shop", "web"}, {}}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			prefix := c.group.URIPrefix("cluster.local")
			for _, id := range c.has {
				if !c.group.Has(id) || !id.IsZero() && !strings.HasPrefix(id.URI("cluster.local"), prefix) {
					t.Errorf("%s: %s is not in it (prefix %s)", c.reason, id, prefix)
				}
			}
			for _, id := range c.not {
				if c.group.Has(id) || !id.IsZero() && strings.HasPrefix(id.URI("cluster.local"), prefix) {
					t.Errorf("%s: %s is in it (prefix %s)", c.reason, id, prefix)
				}
			}
		})
	}
}

var (
	web = Identity{Namespace: "shop", ServiceAccount: "web"}
	ann = Identity{Namespace: "front", ServiceAccount: "ann"}
	bob = Identity{Namespace: "front2", ServiceAccount: "bob"}
)

func TestInboundPortPolicy(t *testing.T) {
	all := HTTPMatch{}
	grant := PortGrant{Source: "Service shop/web allow-from", Callers: []Identity{bob}, Groups: []Group{"front"}}
	cases := map[string]struct {
		reason string
		port   WorkloadPort
		want   InboundPort
	}{
		"AsTheNamespace": {
			"without a policy of its own",
			WorkloadPort{Port: 80, Protocol: HTTP},
			InboundPort{Port: 80, Protocol: HTTP, Mode: Permissive, PlainText: true},
		},
		"Zero": {
			"the zero policy is the strict one",
			WorkloadPort{Port: 80, Protocol: HTTP, Policy: &PortPolicy{}},
			InboundPort{Port: 80, Protocol: HTTP},
		},
		"PlainTextNeedsPermissive": {
			"a client without an identity can have no grant",
			WorkloadPort{Port: 80, Protocol: TCP, Policy: &PortPolicy{ModeBy: "Service shop/web", PlainText: true}},
			InboundPort{Port: 80, Protocol: TCP, ModeBy: "Service shop/web"},
		},
		"HTTP": {
			"every request of the callers, and no connection",
			WorkloadPort{Port: 80, Protocol: HTTP, Policy: &PortPolicy{Grants: []PortGrant{grant}}},
			InboundPort{Port: 80, Protocol: HTTP, Rules: []Rule{{Source: grant.Source, Match: all, Callers: grant.Callers, Groups: grant.Groups}}},
		},
		"TCP": {
			"connections, and no request",
			WorkloadPort{Port: 80, Protocol: TCP, Policy: &PortPolicy{Grants: []PortGrant{grant}}},
			InboundPort{Port: 80, Protocol: TCP, Callers: grant.Callers, Groups: grant.Groups},
		},
		"Sniffed": {
			"both",
			WorkloadPort{Port: 80, Policy: &PortPolicy{Grants: []PortGrant{grant}}},
			InboundPort{Port: 80, Callers: grant.Callers, Groups: grant.Groups, Rules: []Rule{{Source: grant.Source, Match: all, Callers: grant.Callers, Groups: grant.Groups}}},
		},
		"Nobody": {
			"a grant of nobody makes no rule",
			WorkloadPort{Port: 80, Policy: &PortPolicy{Grants: []PortGrant{{Source: "Service shop/web allow-from"}}}},
			InboundPort{Port: 80},
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			w := Workload{ID: ProxyID{Namespace: "shop", Pod: "web-0", UID: "u"}, Identity: web, Ports: []WorkloadPort{c.port}}
			s := must(t, Parts{
				Settings:   Settings{TrustDomain: "cluster.local"},
				Namespaces: []Namespace{{Name: "shop", Mode: Permissive, PlainText: true}}, Workloads: []Workload{w},
			})
			v, _ := s.View(w.ID)
			if d := cmp.Diff([]InboundPort{c.want}, v.Inbound.Ports, compareAddrs()); d != "" {
				t.Errorf("%s (-want +got):\n%s", c.reason, d)
			}
		})
	}
}

// access is a mesh with a Service of three pods, each of which has a policy of its
// own, and one that has no proxy.
func access(policies [3]*PortPolicy, unmeshed *PortPolicy) Parts {
	name := PortName{ServiceName: ServiceName{Namespace: "shop", Name: "web"}, Port: 80}
	svc := Service{Name: name, Protocol: HTTP, InMesh: true, Addresses: []netip.Addr{netip.MustParseAddr("10.96.0.1")}, TargetPorts: []uint16{8080}}
	p := Parts{
		Settings:   Settings{TrustDomain: "cluster.local", ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}},
		Namespaces: []Namespace{{Name: "front", AllowEgress: true}, {Name: "front2"}, {Name: "shop"}},
	}
	for i, policy := range policies {
		id := Identity{Namespace: "shop", ServiceAccount: string(rune('a' + i))}
		svc.Identities = append(svc.Identities, id)
		svc.Targets = append(svc.Targets, Target{Identity: id, Port: 8080, Policy: policy})
		svc.Endpoints = append(svc.Endpoints, Endpoint{Address: netip.AddrFrom4([4]byte{10, 1, 0, byte(i)}), Port: 8080, Identity: id, Policy: policy})
	}
	svc.Endpoints = append(svc.Endpoints, Endpoint{Address: netip.MustParseAddr("10.1.0.9"), Port: 8080, Policy: unmeshed})
	p.Services = []Service{svc}
	return p
}

// reached lists who a caller's bundle leads to and which names it takes.
func reached(o *Outbound) (endpoints, identities string) {
	for _, b := range o.Bundles {
		for _, e := range b.Endpoints {
			endpoints += e.Identity.ServiceAccount + "@" + e.Address.String() + " "
			if e.Policy != nil {
				endpoints += "(with a policy) "
			}
		}
		for _, id := range b.Identities {
			identities += id.ServiceAccount
		}
	}
	return strings.TrimSpace(endpoints), identities
}

func TestOutboundFollowsThePolicyOfEachPort(t *testing.T) {
	permissive, enforced := &PortPolicy{Mode: Permissive}, &PortPolicy{}
	toFront := &PortPolicy{Grants: []PortGrant{{Source: "Service shop/web allow-from", Groups: []Group{"front"}}}}
	toBob := &PortPolicy{Grants: []PortGrant{{Source: "Service shop/web allow-from", Callers: []Identity{bob}}}}
	toAll := &PortPolicy{Grants: []PortGrant{{Source: "Namespace shop allow-from", Groups: []Group{Everyone}}}}
	cases := map[string]struct {
		reason   string
		policies [3]*PortPolicy
		unmeshed *PortPolicy
		ann, bob string
	}{
		"AsTheNamespace": {"enforced, and nobody has a grant", [3]*PortPolicy{}, nil, "", ""},
		"OnePermissive":  {"of one Service, the ports that are permissive", [3]*PortPolicy{permissive, enforced, nil}, nil, "a@10.1.0.0", "a@10.1.0.0"},
		"Unmeshed":       {"what has no proxy is for permissive mode", [3]*PortPolicy{permissive, toAll, nil}, permissive, "a@10.1.0.0 b@10.1.0.1 @10.1.0.9", "a@10.1.0.0 b@10.1.0.1 @10.1.0.9"},
		"Grants":         {"those that name the caller or its namespace", [3]*PortPolicy{toFront, toBob, nil}, toAll, "a@10.1.0.0", "b@10.1.0.1"},
		"Both":           {"a grant adds to what everyone may do", [3]*PortPolicy{permissive, toBob, nil}, permissive, "a@10.1.0.0 @10.1.0.9", "a@10.1.0.0 b@10.1.0.1 @10.1.0.9"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			s := must(t, access(c.policies, c.unmeshed))
			for id, want := range map[Identity]string{ann: c.ann, bob: c.bob} {
				got, names := reached(s.Outbound(id))
				if got != want {
					t.Errorf("%s: %s reaches %q, want %q", c.reason, id, got, want)
				}
				for _, e := range strings.Fields(got) {
					if sa, _, _ := strings.Cut(e, "@"); !strings.Contains(names, sa) {
						t.Errorf("%s: %s reaches %s and takes only the names %q", c.reason, id, e, names)
					}
				}
			}
		})
	}
	one, two := must(t, access([3]*PortPolicy{toAll, toAll, toAll}, nil)), must(t, access([3]*PortPolicy{permissive, permissive, permissive}, nil))
	if a, b := one.Outbound(ann).Bundles[0], one.Outbound(bob).Bundles[0]; a != b || a.Key != two.Outbound(bob).Bundles[0].Key {
		t.Error("callers that see a Service alike do not share its bundle")
	}
}

func TestMutualTLSOnly(t *testing.T) {
	permissive := &PortPolicy{Mode: Permissive}
	parts := access([3]*PortPolicy{permissive, nil, nil}, permissive)
	pod := func(name string, only bool) Workload {
		return Workload{ID: ProxyID{Namespace: "front", Pod: name, UID: name}, Identity: ann, MutualTLSOnly: only}
	}
	parts.Workloads = []Workload{pod("a", false), pod("b", true), pod("c", true), pod("d", false)}
	headless := parts.Services[0]
	headless.Name.Name, headless.Headless, headless.Addresses = "headless", true, nil
	outside := Endpoint{Address: netip.MustParseAddr("192.0.2.1"), Port: 8080, Outside: true, Policy: permissive}
	byHand := Service{
		Name: PortName{ServiceName: ServiceName{Namespace: "shop", Name: "by-hand"}, Port: 80}, InMesh: true, Protocol: HTTP,
		Policy: permissive, Addresses: []netip.Addr{netip.MustParseAddr("10.96.0.3")}, Endpoints: []Endpoint{outside},
	}
	onNode := byHand
	onNode.Name.Name, onNode.Endpoints = "on-node", []Endpoint{{Address: netip.MustParseAddr("10.9.0.1"), Port: 9100, Policy: permissive, OnNode: true}}
	onNode.Addresses = []netip.Addr{netip.MustParseAddr("10.96.0.4")}
	parts.Services = append(parts.Services, headless, byHand, onNode)
	s := must(t, parts)
	view := func(name string) *Outbound {
		v, ok := s.View(ProxyID{Namespace: "front", Pod: name, UID: name})
		if !ok {
			t.Fatal("no view")
		}
		return v.Outbound
	}
	if view("a") != view("d") || view("b") != view("c") || view("a") == view("b") || view("a").Key == view("b").Key {
		t.Error("the pods of an account share a View where they say the same, and only there")
	}
	if s.Outbound(ann) != view("a") {
		t.Error("an account without a word of its pods is as its namespace")
	}
	if got, _ := reached(view("a")); got != "@192.0.2.1 a@10.1.0.0 @10.1.0.9 @10.9.0.1 a@10.1.0.0 @10.1.0.9" || view("a").Refused != nil {
		t.Errorf("a caller that says nothing reaches %s, and is refused %v", got, view("a").Refused)
	}
	refused := []netip.Addr{netip.MustParseAddr("10.1.0.9")}
	if got, _ := reached(view("b")); got != "@192.0.2.1 a@10.1.0.0 a@10.1.0.0" || !slices.Equal(view("b").Refused, refused) {
		t.Errorf("a caller that wants mutual TLS reaches %s, and is refused %v", got, view("b").Refused)
	}
	alone := access([3]*PortPolicy{}, permissive)
	alone.Services[0].Identities, alone.Services[0].Targets, alone.Services[0].Policy = nil, nil, permissive
	alone.Services[0].Endpoints = alone.Services[0].Endpoints[3:]
	alone.Namespaces[0].MutualTLSOnly = true
	s = must(t, alone)
	if got := s.Outbound(ann).Bundles; len(got) > 0 {
		t.Errorf("a Service without any proxy is a bundle of a caller that wants mutual TLS: %+v", got[0])
	}
	if got, _ := reached(s.Outbound(bob)); got != "@10.1.0.9" {
		t.Errorf("another namespace reaches %q", got)
	}
}

func TestFaultsOfPolicies(t *testing.T) {
	bad := func(g PortGrant) *PortPolicy { return &PortPolicy{Grants: []PortGrant{g}} }
	for reason, g := range map[string]PortGrant{
		"it names nobody":                {Source: "x", Callers: []Identity{{}}},
		"a group of nobody":              {Source: "x", Groups: []Group{""}},
		"an identity written as a group": {Source: "x", Groups: []Group{"shop/sa/web"}},
	} {
		parts := access([3]*PortPolicy{bad(g), nil, nil}, nil)
		if _, err := NewSnapshot(parts); err == nil {
			t.Errorf("%s: made a snapshot", reason)
		}
	}
	parts := access([3]*PortPolicy{}, nil)
	parts.Services[0].Targets[0].Identity = bob
	if _, err := NewSnapshot(parts); err == nil {
		t.Error("a target that no identity of the Service has made a snapshot")
	}
}
