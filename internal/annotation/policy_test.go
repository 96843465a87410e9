package annotation

import (
	"errors"
	"slices"
	"testing"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

func TestNamespaceMode(t *testing.T) {
	cases := map[string]struct {
		reason      string
		annotations map[string]string
		meshWide    mesh.Mode
		want        mesh.Mode
		err         string
	}{
		"Unsaid":     {reason: "the mesh decides", meshWide: mesh.Permissive, want: mesh.Permissive},
		"Permissive": {reason: "the namespace overrides", annotations: map[string]string{TrafficPolicy: "permissive"}, want: mesh.Permissive},
		"AnyCase":    {reason: "as with all our words", annotations: map[string]string{TrafficPolicy: "Enforced"}, meshWide: mesh.Permissive, want: mesh.Enforced},
		"Misspelt": {
			reason: "a mistake is never more open", annotations: map[string]string{TrafficPolicy: "permisive"}, meshWide: mesh.Permissive, want: mesh.Enforced,
			err: `namespace annotation outrigger.dev/traffic-policy: "permisive" is not allowed; use permissive or enforced`,
		},
		"Empty": {
			reason: "an empty value says nothing that is allowed", annotations: map[string]string{TrafficPolicy: ""}, meshWide: mesh.Permissive, want: mesh.Enforced,
			err: `namespace annotation outrigger.dev/traffic-policy: "" is not allowed; use permissive or enforced`,
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := NamespaceMode(c.annotations, c.meshWide)
			if got != c.want || text(err) != c.err {
				t.Errorf("%s: got %s, %q; want %s, %q", c.reason, got, text(err), c.want, c.err)
			}
		})
	}
}

func TestNamespaceEgress(t *testing.T) {
	cases := map[string]struct {
		reason      string
		annotations map[string]string
		meshWide    bool
		want        bool
		err         string
	}{
		"Unsaid": {reason: "the mesh decides", meshWide: true, want: true},
		"Allow":  {reason: "the namespace overrides", annotations: map[string]string{Egress: "ALLOW"}, want: true},
		"Deny":   {reason: "the namespace overrides", annotations: map[string]string{Egress: "deny"}, meshWide: true},
		"Misspelt": {
			reason: "a mistake is never more open", annotations: map[string]string{Egress: "true"}, meshWide: true,
			err: `namespace annotation outrigger.dev/egress: "true" is not allowed; use allow or deny`,
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := NamespaceEgress(c.annotations, c.meshWide)
			if got != c.want || text(err) != c.err {
				t.Errorf("%s: got %t, %q; want %t, %q", c.reason, got, text(err), c.want, c.err)
			}
		})
	}
}

func TestServiceMode(t *testing.T) {
	cases := map[string]struct {
		reason      string
		annotations map[string]string
		want        mesh.Mode
		said        bool
		err         string
	}{
		"Unsaid":     {reason: "the namespace decides"},
		"Permissive": {reason: "the Service overrides", annotations: map[string]string{TrafficPolicy: "permissive"}, want: mesh.Permissive, said: true},
		"Enforced":   {reason: "in any case", annotations: map[string]string{TrafficPolicy: "ENFORCED"}, said: true},
		"Misspelt": {
			reason: "a mistake is never more open", annotations: map[string]string{TrafficPolicy: "open"}, said: true,
			err: `service annotation outrigger.dev/traffic-policy: "open" is not allowed; use permissive or enforced`,
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got, said, err := ServiceMode(c.annotations)
			if got != c.want || said != c.said || text(err) != c.err {
				t.Errorf("%s: got %s, %t, %q; want %s, %t, %q", c.reason, got, said, text(err), c.want, c.said, c.err)
			}
		})
	}
}

func TestMTLS(t *testing.T) {
	cases := map[string]struct {
		reason string
		value  string
		want   Demand
		err    string
	}{
		"Strict":     {reason: "the default of servers, said aloud", value: "strict", want: Strict},
		"Permissive": {reason: "a namespace may join step by step", value: "Permissive", want: Lenient},
		"Misspelt":   {reason: "a mistake is never more open", value: "off", want: Strict, err: `annotation outrigger.dev/mtls: "off" is not allowed; use strict or permissive`},
		"Ports":      {reason: "only a Service has ports", value: "80=permissive", want: Strict, err: `annotation outrigger.dev/mtls: "80=permissive" is not allowed; use strict or permissive`},
		"Empty":      {reason: "an empty value says nothing that is allowed", want: Strict, err: `annotation outrigger.dev/mtls: "" is not allowed; use strict or permissive`},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			annotations := map[string]string{MTLS: c.value}
			ns, nsErr := NamespaceMTLS(annotations)
			pod, podErr := PodMTLS(annotations)
			want := func(on string) string {
				if c.err == "" {
					return ""
				}
				return on + " " + c.err
			}
			if ns != c.want || pod != c.want || text(nsErr) != want("namespace") || text(podErr) != want("pod") {
				t.Errorf("%s: got %s, %v and %s, %v; want %s, %q", c.reason, ns, nsErr, pod, podErr, c.want, c.err)
			}
		})
	}
	if got, err := PodMTLS(nil); got != DemandNothing || err != nil {
		t.Errorf("unsaid: got %q, %v", got, err)
	}
}

func TestServiceMTLS(t *testing.T) {
	cases := map[string]struct {
		reason string
		value  string
		want   map[uint16]Demand // of some ports; 1 is none that is named
		bad    bool
	}{
		"All":         {"one word is for all ports", "permissive", map[uint16]Demand{1: Lenient, 80: Lenient}, false},
		"Port":        {"a port alone leaves the others to pod and namespace", "80=permissive", map[uint16]Demand{1: DemandNothing, 80: Lenient}, false},
		"Both":        {"a port before all", " strict , 80 = Permissive,81=strict", map[uint16]Demand{1: Strict, 80: Lenient, 81: Strict}, false},
		"Word":        {"a mistake is never more open", "permissive,80=open", map[uint16]Demand{1: Strict, 80: Strict}, true},
		"TwoWords":    {"which one would hold?", "permissive,strict", map[uint16]Demand{1: Strict}, true},
		"PortTwice":   {"which one would hold?", "80=permissive,80=strict", map[uint16]Demand{1: Strict, 80: Strict}, true},
		"NoPort":      {"ports are from 1", "0=permissive", map[uint16]Demand{1: Strict}, true},
		"TooLarge":    {"to 65535", "65536=permissive", map[uint16]Demand{1: Strict}, true},
		"Name":        {"ports are numbers", "http=permissive", map[uint16]Demand{1: Strict, 80: Strict}, true},
		"Empty":       {"an empty value says nothing that is allowed", "", map[uint16]Demand{1: Strict}, true},
		"EmptyInside": {"nor does an empty entry", "80=permissive,", map[uint16]Demand{1: Strict, 80: Strict}, true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := ServiceMTLS(map[string]string{MTLS: c.value})
			for port, want := range c.want {
				if got.Of(port) != want {
					t.Errorf("%s: port %d gets %q, want %q", c.reason, port, got.Of(port), want)
				}
			}
			if (err != nil) != c.bad {
				t.Errorf("%s: %v", c.reason, err)
			}
		})
	}
	if got, err := ServiceMTLS(nil); got.Of(80) != DemandNothing || err != nil {
		t.Errorf("unsaid: got %v, %v", got, err)
	}
}

func TestAllowFrom(t *testing.T) {
	id := func(ns, sa string) mesh.Identity { return mesh.Identity{Namespace: ns, ServiceAccount: sa} }
	cases := map[string]struct {
		reason     string
		value      string
		identities []mesh.Identity
		groups     []mesh.Group
		refused    string
	}{
		"Namespace":   {reason: "in both spellings, once", value: "shop, shop/*", groups: []mesh.Group{"shop"}},
		"Account":     {reason: "names may have dots", value: "shop/web.v1,shop/web.v1", identities: []mesh.Identity{id("shop", "web.v1")}},
		"Everyone":    {reason: "of the mesh", value: "*", groups: []mesh.Group{mesh.Everyone}},
		"Several":     {reason: "sorted", value: "z,a,b/x,a/x", identities: []mesh.Identity{id("a", "x"), id("b", "x")}, groups: []mesh.Group{"a", "z"}},
		"Empty":       {reason: "nobody, said aloud", value: " "},
		"Pattern":     {reason: "no other patterns; the rest holds", value: "shop/we*, */web, */*, ok", groups: []mesh.Group{"ok"}, refused: "shop/we*, */web, */*"},
		"Names":       {reason: "names are Kubernetes' own", value: "Shop, shop/, /web, a/b/c, spiffe://x", refused: "Shop, shop/, /web, a/b/c, spiffe://x"},
		"EmptyInside": {reason: "an empty entry is a slip", value: "a,,b", groups: []mesh.Group{"a", "b"}, refused: ""},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := NamespaceAllowFrom(map[string]string{AllowFrom: c.value})
			if !got.Said || !slices.Equal(got.Identities, c.identities) || !slices.Equal(got.Groups, c.groups) {
				t.Errorf("%s: got %v", c.reason, got)
			}
			want := ""
			if c.refused != "" || name == "EmptyInside" {
				want = `namespace annotation outrigger.dev/allow-from: "` + c.refused + `" is not allowed; use namespaces (shop or shop/*), service accounts (shop/web) or * for everyone in the mesh, separated by commas`
			}
			if text(err) != want {
				t.Errorf("%s: got %q, want %q", c.reason, text(err), want)
			}
		})
	}
	if got, err := ServiceAllowFrom(nil); got.Said || !got.Nobody() || err != nil {
		t.Errorf("unsaid: got %v, %v", got, err)
	}
}

// TestPolicyStandsWhereItMeansSomething holds that what would have no effect is
// refused.
func TestPolicyStandsWhereItMeansSomething(t *testing.T) {
	for _, c := range []struct {
		check func(map[string]string) []error
		name  string
		keys  map[string]string
		want  string
	}{
		{CheckService, "service", map[string]string{Egress: "deny"}, "service annotation outrigger.dev/egress has no effect on a service; use it on a namespace"},
		{CheckPod, "pod", map[string]string{Egress: "deny"}, "pod annotation outrigger.dev/egress has no effect on a pod; use it on a namespace"},
		{CheckPod, "pod", map[string]string{TrafficPolicy: "enforced"}, "pod annotation outrigger.dev/traffic-policy has no effect on a pod; use it on a namespace or a service"},
		{CheckPod, "pod", map[string]string{AllowFrom: "shop"}, "pod annotation outrigger.dev/allow-from has no effect on a pod; use it on a namespace or a service"},
		{CheckPod, "pod", map[string]string{MTLS: "80=strict"}, `pod annotation outrigger.dev/mtls: "80=strict" is not allowed; use strict or permissive`},
		{CheckNamespace, "namespace", map[string]string{MTLS: "permissive", Egress: "deny", TrafficPolicy: "enforced", AllowFrom: ""}, ""},
		{CheckService, "service", map[string]string{MTLS: "strict,80=permissive", TrafficPolicy: "permissive", AllowFrom: "*"}, ""},
	} {
		if got := text(errors.Join(c.check(c.keys)...)); got != c.want {
			t.Errorf("%s %v: %q, want %q", c.name, c.keys, got, c.want)
		}
	}
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
