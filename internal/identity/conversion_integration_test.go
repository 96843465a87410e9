//go:build integration

package identity

import (
	"os"
	"slices"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

// TestWebhookKeepsConversion wants the chart's CRD to be sent to this mesh, wherever
// it is installed, and left to it by others.
func TestWebhookKeepsConversion(t *testing.T) {
	text, err := os.ReadFile("../../manifests/crds/specs.smi-spec.io_tcproutes.yaml")
	must(t, err)
	chart := &unstructured.Unstructured{}
	must(t, yaml.Unmarshal(text, &chart.Object))
	must(t, admin(t).Create(t.Context(), chart))
	first, _ := newHome(t, "converts")
	second, _ := newHome(t, "waits")
	webhook := func(home Home) *Webhook {
		return NewWebhook(WebhookConfig{
			Home: home, DNSNames: []string{"localhost"}, Service: "outrigger-webhook",
			Converted: []string{chart.GetName(), "httproutegroups.specs.smi-spec.io"}, // the other is not there
		})
	}
	w := webhook(first)
	changed, err := w.Sync(t.Context())
	must(t, err)
	must(t, w.Ready())
	if want := []string{"CustomResourceDefinition " + chart.GetName()}; !slices.Equal(changed, want) {
		t.Errorf("want %v changed, got %v", want, changed)
	}
	for _, other := range []*Webhook{w, webhook(second)} {
		changed, err = other.Sync(t.Context())
		must(t, err)
		if len(changed) > 0 {
			t.Errorf("nothing was to be done, but %v were changed", changed)
		}
	}
	c := converted{crd: chart.GetName(), namespace: first.Namespace, service: "outrigger-webhook"}
	held, err := c.read(t.Context(), admin(t))
	must(t, err)
	if len(held) != 1 || len(held[0].caBundle) == 0 {
		t.Errorf("the CRD is not this mesh's: %v", held)
	}
}
