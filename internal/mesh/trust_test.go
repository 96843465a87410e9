package mesh

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestTrustDoesNotSayWhoSigns(t *testing.T) {
	before, after := generate(3), generate(3)
	before.Settings.TrustDomain, before.Settings.TrustBundle = "old.mesh", "old"
	before.Settings.AlsoTrusted = []TrustDomain{{Name: "new.mesh", Bundle: "new"}, {Name: "z.mesh"}}
	after.Settings.TrustDomain, after.Settings.TrustBundle = "new.mesh", "new"
	after.Settings.AlsoTrusted = []TrustDomain{{Name: "z.mesh"}, {Name: "old.mesh", Bundle: "old"}}
	a, b := must(t, before), must(t, after)
	want := []TrustDomain{{Name: "new.mesh", Bundle: "new"}, {Name: "old.mesh", Bundle: "old"}, {Name: "z.mesh"}}
	if d := cmp.Diff(want, a.Trust().Domains()); d != "" {
		t.Errorf("accepted trust domains (-want +got):\n%s", d)
	}
	if a.Version() == b.Version() {
		t.Error("snapshots with another signer have one version")
	}
	for _, id := range a.Proxies() {
		x, _ := a.View(id)
		y, _ := b.View(id)
		if d := cmp.Diff(x, y, compareAddrs()); d != "" {
			t.Fatalf("who signs shows in the view of %s (-old signs +new signs):\n%s", id, d)
		}
	}
	if a.Trust().Key != before.Settings.Trust().Key {
		t.Error("settings and snapshot have different keys of trust")
	}
	for _, id := range []string{"new.mesh", "old.mesh", "z.mesh"} {
		got, domain, err := before.Settings.ParseURI("spiffe://" + id + "/ns/shop/sa/web")
		if err != nil || domain != id || got != (Identity{Namespace: "shop", ServiceAccount: "web"}) {
			t.Errorf("a name of %s is %v in %q, %v", id, got, domain, err)
		}
	}
	if _, _, err := before.Settings.ParseURI("spiffe://other.mesh/ns/shop/sa/web"); err == nil {
		t.Error("a name of a trust domain that is not accepted is read")
	}
}

// TestTrustChangesWhatDependsOnIt holds that whatever names a trust domain has
// another key once more of them are accepted, and the old one when they are not.
func TestTrustChangesWhatDependsOnIt(t *testing.T) {
	parts := generate(3)
	one := must(t, parts)
	parts.Settings.AlsoTrusted = []TrustDomain{{Name: "also.mesh", Bundle: "also"}}
	two := must(t, parts)
	for _, id := range one.Proxies() {
		x, _ := one.View(id)
		y, _ := two.View(id)
		if x.Trust.Key == y.Trust.Key || x.Inbound.Key == y.Inbound.Key {
			t.Errorf("%s: trust or inbound has the key of before", id)
		}
		for i := range x.Outbound.Bundles {
			if x.Outbound.Bundles[i].Passthrough {
				continue
			}
			if x.Outbound.Bundles[i].Key == y.Outbound.Bundles[i].Key {
				t.Errorf("%s: bundle %s has the key of before", id, x.Outbound.Bundles[i].Name)
			}
		}
	}
}

func TestTrustDomainsAreNotListedTwice(t *testing.T) {
	for want, domains := range map[string][]TrustDomain{
		"trust domain cluster.local is listed twice": {{Name: "cluster.local"}},
		"trust domain a is listed twice":             {{Name: "a"}, {Name: "a"}},
		"is also accepted is empty":                  {{Bundle: "roots"}},
	} {
		parts := generate(1)
		parts.Settings.TrustDomain, parts.Settings.AlsoTrusted = "cluster.local", domains
		if _, err := NewSnapshot(parts); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v; want an error with %q", err, want)
		}
	}
}

// TestTrustDomainIsLeftInTwoSteps holds that without a bundle callers look for
// nobody of a trust domain, and servers still know who is connected.
func TestTrustDomainIsLeftInTwoSteps(t *testing.T) {
	parts := generate(3)
	parts.Settings.TrustDomain, parts.Settings.TrustBundle = "new.mesh", "new"
	parts.Settings.AlsoTrusted = []TrustDomain{{Name: "a.mesh"}, {Name: "z.mesh", Bundle: "z"}}
	s := must(t, parts)
	view, _ := s.View(s.Proxies()[0])
	if got := append([]string{view.Inbound.TrustDomain}, view.Inbound.AlsoTrusted...); !slices.Equal(got, []string{"a.mesh", "new.mesh", "z.mesh"}) {
		t.Errorf("callers are accepted in %v", got)
	}
	for _, b := range view.Outbound.Bundles {
		if got := append([]string{b.TrustDomain}, b.AlsoTrusted...); !b.Passthrough && !slices.Equal(got, []string{"new.mesh", "z.mesh"}) {
			t.Errorf("servers of %s are accepted in %v", b.Name, got)
		}
	}
}
