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
		objects  []string // as OSM's users write them
	}{
		"access.smi-spec.io_traffictargets.yaml": {
			names: []string{"traffictargets", "traffictarget", "tt"}, versions: []string{"v1alpha3"},
			objects: []string{`
spec:
  destination: {kind: ServiceAccount, name: bookstore-v1, namespace: bookstore}
  sources: [{kind: ServiceAccount, name: bookbuyer, namespace: bookbuyer}]
  rules:
  - {kind: HTTPRouteGroup, name: bookstore-service-routes, matches: [buy-a-book, books-bought]}
  - {kind: TCPRoute, name: port}`},
		},
		"specs.smi-spec.io_httproutegroups.yaml": {
			names: []string{"httproutegroups", "httproutegroup", "htr"}, versions: []string{"v1alpha4"},
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
			names: []string{"tcproutes", "tcproute", "tr"}, versions: []string{"v1alpha4"},
			objects: []string{"\nspec: {matches: {ports: [3306, 8080]}}"},
		},
		"split.smi-spec.io_trafficsplits.yaml": {
			names: []string{"trafficsplits", "trafficsplit", "ts"}, versions: []string{"v1alpha2", "v1alpha3", "v1alpha4"},
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
				for _, o := range c.objects {
					taken(t, v, o)
				}
			}
			slices.Sort(served)
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
