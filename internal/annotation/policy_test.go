package annotation

import (
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

func TestNamespacePlainText(t *testing.T) {
	cases := map[string]struct {
		reason string
		value  string
		want   bool
		err    string
	}{
		"Strict":     {reason: "the default, said aloud", value: "strict"},
		"Permissive": {reason: "a namespace may join step by step", value: "Permissive", want: true},
		"Misspelt": {
			reason: "a mistake is never more open", value: "off",
			err: `namespace annotation outrigger.dev/mtls: "off" is not allowed; use strict or permissive`,
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := NamespacePlainText(map[string]string{MTLS: c.value})
			if got != c.want || text(err) != c.err {
				t.Errorf("%s: got %t, %q; want %t, %q", c.reason, got, text(err), c.want, c.err)
			}
		})
	}
	if got, err := NamespacePlainText(nil); got || err != nil {
		t.Errorf("unsaid: got %t, %v; want strict", got, err)
	}
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
