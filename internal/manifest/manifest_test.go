package manifest

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/outrigger-mesh/outrigger/injector"
	"github.com/outrigger-mesh/outrigger/internal/golden"
	"github.com/outrigger-mesh/outrigger/internal/ingest"
)

func TestMain(m *testing.M) { os.Exit(golden.CheckStale(m, "testdata")) }

var (
	settings = injector.Settings{SystemNamespace: "outrigger-system", OSMMesh: "osm"}
	cidrs    = []netip.Prefix{netip.MustParsePrefix("10.96.0.0/29")}
)

// TestComplete shows what is added to YAML as users write it.
func TestComplete(t *testing.T) {
	text, err := os.ReadFile("testdata/app/in.yaml")
	if err != nil {
		t.Fatal(err)
	}
	o, err := Parse(text, "default")
	if err != nil {
		t.Fatal(err)
	}
	before, err := yaml.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	objs, err := Complete(o, settings, cidrs)
	if err != nil {
		t.Fatal(err)
	}
	out, err := yaml.Marshal(objs)
	if err != nil {
		t.Fatal(err)
	}
	golden.Compare(t, "testdata/app/out.golden.yaml", out)
	if after, err := yaml.Marshal(o); err != nil || string(after) != string(before) {
		t.Errorf("Complete changed its input (%v)", err)
	}
	if _, problems := ingest.Build(objs, ingest.Options{TrustDomain: "cluster.local"}); len(problems) > 0 {
		t.Errorf("what was added has problems: %v", problems)
	}
	if want := []string{"Ingress", "ConfigMap"}; !slices.Equal(o.Skipped, want) {
		t.Errorf("skipped %q, want %q", o.Skipped, want)
	}
}

func TestCompleteRunsOut(t *testing.T) {
	o, err := Parse([]byte(strings.Repeat("---\napiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 80}]}\n", 9)), "default")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Complete(o, settings, cidrs); err == nil || !strings.Contains(err.Error(), "have none left") {
		t.Errorf("nine addresses out of a range of eight: %v", err)
	}
}

func TestParseRefuses(t *testing.T) {
	cases := map[string]struct{ reason, in, says string }{
		"not YAML":                  {reason: "the document is told", in: "kind: Pod\napiVersion: v1\n---\n{", says: "document 2"},
		"no kind":                   {reason: "anything could be meant", in: "metadata: {name: a}", says: "no kind"},
		"a list":                    {reason: "no object is a list", in: "- a\n", says: "document 1"},
		"unknown field":             {reason: "it would mean less than was written", in: "apiVersion: v1\nkind: Service\nspec: {selectors: {}}", says: `unknown field "spec.selectors"`},
		"wrong type":                {reason: "as the API server", in: "apiVersion: v1\nkind: Service\nspec: {ports: 1}", says: "document 1"},
		"no version":                {reason: "nobody knows what it means", in: "apiVersion: specs.smi-spec.io/v1\nkind: HTTPRouteGroup", says: `no version "v1"`},
		"other kind":                {reason: "it allows nothing, and should be told so", in: "apiVersion: specs.smi-spec.io/v1alpha4\nkind: UDPRoute", says: "not read by the mesh"},
		"mixed shapes":              {reason: "a part would be lost", in: "apiVersion: specs.smi-spec.io/v1alpha1\nkind: HTTPRouteGroup\nspec: {matches: []}", says: "this version has no spec"},
		"unknown in an old version": {reason: "as in a new one", in: "apiVersion: specs.smi-spec.io/v1alpha1\nkind: HTTPRouteGroup\nmatches: []\nmatchs: []", says: `unknown field "matchs"`},
		"in a List":                 {reason: "the item is told", in: "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Pod}\n- {kind: Pod}", says: "item 2"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			if o, err := Parse([]byte(tc.in), "default"); err == nil || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("%s: read %+v, %v; want the error %q", tc.reason, o, err, tc.says)
			}
		})
	}
}

// FuzzParse wants whatever can be read to be completed and built without a panic.
func FuzzParse(f *testing.F) {
	stories, err := filepath.Glob("../scenario/testdata/*/in.yaml")
	if err != nil || len(stories) == 0 {
		f.Fatalf("find seeds: %d, %v", len(stories), err)
	}
	for _, name := range append(stories, "testdata/app/in.yaml") {
		text, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		o, err := Parse(text, "default")
		if err != nil {
			return
		}
		if objs, err := Complete(o, settings, cidrs); err == nil {
			ingest.Build(objs, ingest.Options{TrustDomain: "cluster.local"})
		}
	})
}
