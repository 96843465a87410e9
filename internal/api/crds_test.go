package api_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/validation"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/pruning"
	servervalidation "k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	"sigs.k8s.io/yaml"
)

// TestCRDs checks the generated CRDs with the API server's own code, and that
// they take what OSM's users write without losing any of it.
func TestCRDs(t *testing.T) {
	cases := map[string]struct {
		names    []string // plural, singular, short
		versions []string // served
		stored   string
		objects  []string            // as OSM's users write them
		older    map[string][]string // in versions of another shape
	}{
		"access.smi-spec.io_traffictargets.yaml": {
			names: []string{"traffictargets", "traffictarget", "tt"}, versions: []string{"v1alpha1", "v1alpha2", "v1alpha3"}, stored: "v1alpha3",
			older: map[string][]string{
				"v1alpha1": {"destination: {kind: ServiceAccount, name: a, namespace: b, port: 8080}\nspecs: [{kind: HTTPRouteGroup, name: c, matches: [d]}]\nsources: [{kind: ServiceAccount, name: e}]"},
				"v1alpha2": {"spec: {destination: {kind: ServiceAccount, name: a, port: 8080}, rules: [{kind: TCPRoute, name: c}], sources: [{kind: ServiceAccount, name: e}]}", "spec: {destination: {kind: ServiceAccount, name: a}}"},
			},
			objects: []string{`
spec:
  destination: {kind: ServiceAccount, name: bookstore-v1, namespace: bookstore}
  sources: [{kind: ServiceAccount, name: bookbuyer, namespace: bookbuyer}]
  rules:
  - {kind: HTTPRouteGroup, name: bookstore-service-routes, matches: [buy-a-book, books-bought]}
  - {kind: TCPRoute, name: port}`},
		},
		"specs.smi-spec.io_httproutegroups.yaml": {
			names: []string{"httproutegroups", "httproutegroup", "htr"}, versions: []string{"v1alpha1", "v1alpha2", "v1alpha3", "v1alpha4"}, stored: "v1alpha4",
			older: map[string][]string{
				"v1alpha1": {`matches: [{name: a, pathRegex: /a, methods: [GET]}]`},
				"v1alpha2": {`matches: [{name: a, headers: [{user-agent: ".*Android.*"}]}]`},
			},
			objects: []string{`
spec:
  matches:
  - name: books-bought
    pathRegex: /books-bought
    methods: [GET, "*"]
    headers:
    - user-agent: ".*-http-client/*.*"
    - client-app: bookbuyer
  - name: everything`},
		},
		"specs.smi-spec.io_tcproutes.yaml": {
			names: []string{"tcproutes", "tcproute", "tr"}, versions: []string{"v1alpha1", "v1alpha2", "v1alpha3", "v1alpha4"}, stored: "v1alpha4",
			objects: []string{"\nspec: {matches: {ports: [3306, 8080]}}", "\nspec: {matches: {ports: []}}", "\nspec: {}", "metadata: {}"},
			older:   map[string][]string{"v1alpha1": {"metadata: {}"}, "v1alpha2": {"metadata: {}"}, "v1alpha3": {"spec: {}"}},
		},
		"split.smi-spec.io_trafficsplits.yaml": {
			names: []string{"trafficsplits", "trafficsplit", "ts"}, versions: []string{"v1alpha1", "v1alpha2", "v1alpha3", "v1alpha4"}, stored: "v1alpha2",
			objects: []string{`
spec:
  service: bookstore.bookstore
  backends: [{service: bookstore-v1, weight: 50}, {service: bookstore-v2, weight: 0}]`, `
spec:
  service: bookstore
  matches: [{apiGroup: specs.smi-spec.io, kind: HTTPRouteGroup, name: testers}]
  backends: [{service: bookstore-v2, weight: 1}]`},
		},
	}
	files, err := filepath.Glob("../../manifests/crds/*_*.yaml")
	if err != nil || len(files) < len(cases) {
		t.Fatalf("find the CRDs: %v, %v", files, err)
	}
	for file, c := range cases {
		t.Run(file, func(t *testing.T) {
			crd := load(t, filepath.Join("../../manifests/crds", file))
			n := crd.Spec.Names
			if d := cmp.Diff(c.names, append([]string{n.Plural, n.Singular}, n.ShortNames...)); d != "" {
				t.Errorf("names (-want +got):\n%s", d)
			}
			var served []string
			for _, v := range crd.Spec.Versions {
				if v.Served {
					served = append(served, v.Name)
				}
				objects := c.objects
				if older, ok := c.older[v.Name]; ok {
					objects = older
				}
				for _, o := range objects {
					taken(t, v, o)
					taken(t, v, o+"\nstatus: {conditions: [{type: Accepted, status: 'True', reason: Accepted, message: '', lastTransitionTime: '2026-01-01T00:00:00Z', observedGeneration: 1}]}")
				}
				if v.Subresources == nil || v.Subresources.Status == nil {
					t.Errorf("%s has no status", v.Name)
				}
			}
			slices.Sort(served)
			if got := storage(crd); got != c.stored {
				t.Errorf("stored in %s, want %s", got, c.stored)
			}
			// What was stored is served without outriggerd, in the version too that
			// kubectl and the namespace controller prefer.
			strategy := apiextensionsv1.NoneConverter
			if c.older != nil {
				strategy = apiextensionsv1.WebhookConverter
				if last := c.versions[len(c.versions)-1]; last != c.stored {
					t.Errorf("the preferred version %s is converted", last)
				}
			}
			if crd.Spec.Conversion == nil && c.older != nil || crd.Spec.Conversion != nil && crd.Spec.Conversion.Strategy != strategy {
				t.Errorf("conversion is %v, want %s", crd.Spec.Conversion, strategy)
			}
			if d := cmp.Diff(c.versions, served); d != "" {
				t.Errorf("served versions (-want +got):\n%s", d)
			}
		})
	}
}

func load(t *testing.T, file string) *apiextensionsv1.CustomResourceDefinition {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var crd apiextensionsv1.CustomResourceDefinition
	if err := yaml.UnmarshalStrict(data, &crd); err != nil {
		t.Fatal(err)
	}
	defaulted := crd.DeepCopy()
	apiextensionsv1.SetDefaults_CustomResourceDefinitionSpec(&defaulted.Spec)
	defaulted.Status.StoredVersions = []string{storage(defaulted)}
	var internal apiextensions.CustomResourceDefinition
	if err := apiextensionsv1.Convert_v1_CustomResourceDefinition_To_apiextensions_CustomResourceDefinition(defaulted, &internal, nil); err != nil {
		t.Fatal(err)
	}
	if errs := validation.ValidateCustomResourceDefinition(t.Context(), &internal); len(errs) > 0 {
		t.Errorf("the API server would refuse it: %v", errs.ToAggregate())
	}
	return &crd
}

func storage(crd *apiextensionsv1.CustomResourceDefinition) string {
	i := slices.IndexFunc(crd.Spec.Versions, func(v apiextensionsv1.CustomResourceDefinitionVersion) bool { return v.Storage })
	return crd.Spec.Versions[i].Name
}

// taken checks that a version takes an object as it is.
func taken(t *testing.T, v apiextensionsv1.CustomResourceDefinitionVersion, object string) {
	t.Helper()
	var props apiextensions.JSONSchemaProps
	if err := apiextensionsv1.Convert_v1_JSONSchemaProps_To_apiextensions_JSONSchemaProps(v.Schema.OpenAPIV3Schema, &props, nil); err != nil {
		t.Fatal(err)
	}
	structural, err := schema.NewStructural(&props)
	if err != nil {
		t.Fatal(err)
	}
	var written, kept map[string]any
	for _, into := range []*map[string]any{&written, &kept} {
		if err := yaml.Unmarshal([]byte(object), into); err != nil {
			t.Fatal(err)
		}
	}
	pruning.Prune(kept, structural, true)
	if d := cmp.Diff(written, kept); d != "" {
		t.Errorf("%s loses (-written +kept):\n%s", v.Name, d)
	}
	validator, _, err := servervalidation.NewSchemaValidator(&props)
	if err != nil {
		t.Fatal(err)
	}
	if errs := servervalidation.ValidateCustomResource(nil, written, validator); len(errs) > 0 {
		t.Errorf("%s refuses%s\n%v", v.Name, object, errs.ToAggregate())
	}
}
