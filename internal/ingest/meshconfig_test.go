package ingest

import (
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

func TestMeshConfig(t *testing.T) {
	sidecar := func(value any) map[string]any {
		return map[string]any{"sidecar": map[string]any{"tlsMinProtocolVersion": value}}
	}
	for name, tc := range map[string]struct {
		spec    any
		chart   bool // what the chart's values say
		old     bool
		problem string
	}{
		"1.2":                  {spec: sidecar("TLSv1_2"), old: true},
		"Envoy's own":          {spec: sidecar("TLS_AUTO"), old: true},
		"1.3":                  {spec: sidecar("TLSv1_3"), chart: true},
		"older than we know":   {spec: sidecar("TLSv1_0"), old: true, problem: `"TLSv1_0"`},
		"nothing":              {spec: map[string]any{}, chart: true, old: true},
		"empty":                {spec: sidecar("")},
		"null":                 {spec: sidecar(nil)},
		"another word":         {spec: sidecar("1.2"), problem: `"1.2"; TLSv1_2, TLSv1_3 and TLS_AUTO are allowed`},
		"a number":             {spec: sidecar(int64(12)), problem: `"12"`},
		"a list":               {spec: sidecar([]any{"TLSv1_2"}), problem: `"[TLSv1_2]"`},
		"another shape":        {spec: map[string]any{"sidecar": "TLSv1_2"}},
		"no spec":              {spec: nil},
		"a word without bound": {spec: sidecar(strings.Repeat("x", 1e6)), chart: true, old: true, problem: strings.Repeat("x", 40) + `"`},
	} {
		t.Run(name, func(t *testing.T) {
			config := &unstructured.Unstructured{Object: map[string]any{"spec": tc.spec}}
			config.SetName(MeshConfigName)
			config.SetNamespace("outrigger-system")
			other, elsewhere := config.DeepCopy(), config.DeepCopy()
			other.Object["spec"], elsewhere.Object["spec"] = sidecar("bad"), sidecar("bad")
			other.SetName("another")
			elsewhere.SetNamespace("shop")
			snap, problems := Build(Objects{MeshConfigs: []*unstructured.Unstructured{other, elsewhere, config}}, Options{
				TrustDomain: "cluster.local", SystemNamespace: "outrigger-system", OldTLS: tc.chart,
			})
			if got := snap.Dump().Settings.OldTLS; got != tc.old {
				t.Errorf("TLS 1.2 is allowed: %t, want %t", got, tc.old)
			}
			switch {
			case tc.problem == "" && len(problems) > 0:
				t.Errorf("unexpected: %v", problems)
			case tc.problem == "":
			case len(problems) != 1 || problems[0].Reason != BadMeshConfig || !strings.Contains(problems[0].Message, tc.problem) ||
				problems[0].Object.String() != "MeshConfig outrigger-system/osm-mesh-config":
				t.Errorf("problems are %v; want one about %s", problems, tc.problem)
			}
		})
	}
}
