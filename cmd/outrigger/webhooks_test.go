package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/outrigger-mesh/outrigger/webhook"
)

// TestWebhooksInChart holds the chart to what package webhook says, which is what
// its tests try on a real API server.
func TestWebhooksInChart(t *testing.T) {
	cases := map[string]struct {
		values  map[string]any
		options webhook.Options
	}{
		"default":                 {options: webhook.Options{OSMMesh: "osm"}},
		"TrafficTargets anywhere": {values: map[string]any{"smi": map[string]any{"validateTrafficTarget": false}}, options: webhook.Options{OSMMesh: "osm", AnyTrafficTarget: true}},
		"without OSM":             {values: map[string]any{"osmMeshName": ""}},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			tc.options.Name, tc.options.SystemNamespace, tc.options.Service = "outrigger-outrigger-system", "outrigger-system", "outrigger-webhook"
			compareWebhooks(t, tc.values, tc.options)
		})
	}
}

func compareWebhooks(t *testing.T, values map[string]any, options webhook.Options) {
	t.Helper()
	text, err := render("outrigger-system", values)
	if err != nil {
		t.Fatal(err)
	}
	var mutating admissionregistrationv1.MutatingWebhookConfiguration
	var validating admissionregistrationv1.ValidatingWebhookConfiguration
	for document := range strings.SplitSeq(text, "\n---\n") {
		switch {
		case strings.Contains(document, "kind: MutatingWebhookConfiguration"):
			err = yaml.UnmarshalStrict([]byte(document), &mutating)
		case strings.Contains(document, "kind: ValidatingWebhookConfiguration"):
			err = yaml.UnmarshalStrict([]byte(document), &validating)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	wantMutating, wantValidating := webhook.Configurations(options)
	opts := cmp.Options{cmpopts.IgnoreFields(metav1.ObjectMeta{}, "Labels"), cmpopts.EquateEmpty()}
	if diff := cmp.Diff(wantMutating, &mutating, opts); diff != "" {
		t.Errorf("the chart's mutating webhooks differ from the code's (-code +chart):\n%s", diff)
	}
	if diff := cmp.Diff(wantValidating, &validating, opts); diff != "" {
		t.Errorf("the chart's validating webhooks differ from the code's (-code +chart):\n%s", diff)
	}
}
