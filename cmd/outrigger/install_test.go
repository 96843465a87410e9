package main

import (
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/util/yaml"
)

// TestRender renders the chart with defaults and with cert-manager, and reads
// every document back.
func TestRender(t *testing.T) {
	cases := map[string]struct {
		reason string
		values map[string]any
		want   []string
		absent []string
	}{
		"defaults": {
			reason: "outriggerd makes the webhooks' certificate and may write its own configurations",
			want: []string{
				"Namespace", "CustomResourceDefinition", "ServiceAccount", "ClusterRole", "Role", "Deployment",
				"Service", "PodDisruptionBudget", "MutatingWebhookConfiguration", "ValidatingWebhookConfiguration",
			},
			absent: []string{"Certificate", "ValidatingAdmissionPolicy"},
		},
		"cert-manager": {
			reason: "cert-manager makes it, and outriggerd loses the right",
			values: map[string]any{"webhook": map[string]any{"certManager": map[string]any{"enabled": true, "issuerRef": map[string]any{"name": "ca"}}}},
			want:   []string{"Certificate"},
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			text, err := render("outrigger-system", tc.values)
			if err != nil {
				t.Fatal(err)
			}
			kinds := map[string]bool{}
			decoder := yaml.NewYAMLOrJSONDecoder(strings.NewReader(text), 4096)
			for {
				var object struct{ Kind string }
				if decoder.Decode(&object) != nil {
					break
				}
				kinds[object.Kind] = true
			}
			for _, kind := range tc.want {
				if !kinds[kind] {
					t.Errorf("%s: no %s among %v", tc.reason, kind, kinds)
				}
			}
			for _, kind := range tc.absent {
				if kinds[kind] {
					t.Errorf("%s: a %s was rendered", tc.reason, kind)
				}
			}
			if mayPatch := strings.Contains(text, "mutatingwebhookconfigurations"); mayPatch == (tc.values != nil) {
				t.Errorf("%s: the right to patch webhook configurations is %t", tc.reason, mayPatch)
			}
		})
	}
}
