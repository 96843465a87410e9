package injector

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/outrigger-mesh/outrigger/internal/annotation"
)

// TestMatchIsBelieved wants the API server's word to count where the labels that
// we know of contradict it; they come from a cache that may be behind.
func TestMatchIsBelieved(t *testing.T) {
	label := func(v string) Namespace {
		return Namespace{Name: "shop", Labels: map[string]string{annotation.Inject: v}}
	}
	osm := Namespace{Name: "shop", Annotations: map[string]string{annotation.OSMInject: "enabled"}}
	cases := map[string]struct {
		reason string
		ns     Namespace
		match  Match
		want   Reason
	}{
		"on, nothing known":        {reason: "the label is new", ns: Namespace{Name: "shop"}, match: MatchOn, want: NamespaceEnabled},
		"on, was disabled":         {reason: "the label was changed", ns: label("disabled"), match: MatchOn, want: NamespaceEnabled},
		"on, disabled in capitals": {reason: "this is what the selector lets through", ns: label("DISABLED"), match: MatchOn, want: NamespaceDisabled},
		"on, means nothing":        {reason: "it can be put right", ns: label("maybe"), match: MatchOn, want: InvalidValue},
		"ask, was enabled":         {reason: "the label was changed", ns: label("enabled"), match: MatchAsk, want: NamespaceDisabled},
		"osm, had our label":       {reason: "our label was taken away", ns: Namespace{Name: "shop", Labels: label("disabled").Labels, Annotations: osm.Annotations}, match: MatchOSM, want: NamespaceEnabled},
		"osm, no annotation":       {reason: "OSM's label alone does not inject", ns: Namespace{Name: "shop"}, match: MatchOSM, want: NotEnabled},
		"none, has a label":        {reason: "the zero Match is outside the mesh", ns: label("enabled"), match: NoMatch, want: OutsideMesh},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			if got := Decide(Request{Namespace: tc.ns, Match: tc.match, Pod: &corev1.Pod{}}, settings()); got.Reason != tc.want {
				t.Errorf("%s: %s (%s), want %s", tc.reason, got.Reason, got.Message, tc.want)
			}
		})
	}
}

func TestMatchNamespace(t *testing.T) {
	cases := map[string]struct {
		ns   Namespace
		want Match
	}{
		"no label":         {Namespace{Name: "shop"}, NoMatch},
		"enabled":          {Namespace{Name: "shop", Labels: map[string]string{annotation.Inject: "Enabled"}}, MatchOn},
		"disabled":         {Namespace{Name: "shop", Labels: map[string]string{annotation.Inject: "disabled"}}, MatchAsk},
		"other case":       {Namespace{Name: "shop", Labels: map[string]string{annotation.Inject: "Disabled"}}, MatchOn},
		"osm":              {Namespace{Name: "shop", Labels: map[string]string{annotation.OSMMonitoredBy: "osm"}}, MatchOSM},
		"system namespace": {Namespace{Name: "outrigger-system", Labels: map[string]string{annotation.Inject: "enabled"}}, NoMatch},
	}
	for name, tc := range cases {
		if got := MatchNamespace(tc.ns, settings()); got != tc.want {
			t.Errorf("%s: MatchNamespace = %v, want %v", name, got, tc.want)
		}
	}
}

func TestSettingsValidate(t *testing.T) {
	if err := settings().Validate(); err != nil {
		t.Fatalf("good settings are refused: %v", err)
	}
	cases := map[string]func(*Settings){
		"Mesh":             func(s *Settings) { s.Mesh = "" },
		"ControlPlaneID":   func(s *Settings) { s.ControlPlaneID = "" },
		"SystemNamespace":  func(s *Settings) { s.SystemNamespace = "" },
		"ProxyImage":       func(s *Settings) { s.ProxyImage = "" },
		"PullPolicy":       func(s *Settings) { s.PullPolicy = "Sometimes" },
		"LogLevel":         func(s *Settings) { s.LogLevel = "loud" },
		"Concurrency":      func(s *Settings) { s.Concurrency = -1 },
		"Resources.CPU":    func(s *Settings) { s.Resources.CPU = resource.MustParse("-1") },
		"Resources.Memory": func(s *Settings) { s.Resources.Memory = resource.MustParse("1Gi") },
		"Redirect":         func(s *Settings) { s.Redirect.ExcludeInboundPorts = []uint16{15001} },
	}
	for field, spoil := range cases {
		s := settings()
		spoil(&s)
		if err := s.Validate(); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: error %v, want one that names the field", field, err)
		}
	}
}

// TestReasonsAreStable fails when a word that dashboards know is changed.
func TestReasonsAreStable(t *testing.T) {
	want := "system-namespace host-network mirror-pod windows another-mesh namespace-not-in-mesh invalid-value " +
		"pod-disabled pod-enabled namespace-enabled namespace-disabled not-enabled conflict"
	var got []string
	for _, r := range []Reason{
		SystemNamespace, HostNetwork, MirrorPod, Windows, AnotherMesh, OutsideMesh, InvalidValue,
		PodDisabled, PodEnabled, NamespaceEnabled, NamespaceDisabled, NotEnabled, Conflict,
	} {
		got = append(got, string(r))
	}
	if strings.Join(got, " ") != want {
		t.Errorf("reasons are %q, want %q", got, want)
	}
}

// BenchmarkInject is what a pod costs at admission, without JSON and HTTP.
func BenchmarkInject(b *testing.B) {
	for _, name := range []string{"plain-pod-in-an-enabled-namespace", "http-probes-and-hooks-are-rewritten", "another-webhook-added-a-container"} {
		b.Run(name, func(b *testing.B) {
			tc := load(b, "testdata/"+name)
			r := Request{Namespace: tc.namespace, Match: MatchNamespace(tc.namespace, tc.settings), Pod: decode(b, tc.raw)}
			b.ReportAllocs()
			for b.Loop() {
				if _, ops := Inject(r, tc.settings); len(ops) == 0 {
					b.Fatal("no operations")
				}
			}
		})
	}
}
