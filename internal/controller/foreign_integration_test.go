//go:build integration

package controller

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/discovery"
	"sigs.k8s.io/yaml"

	"github.com/outrigger-mesh/outrigger/e2e/cluster/local"
	"github.com/outrigger-mesh/outrigger/internal/api"
	specsv1alpha4 "github.com/outrigger-mesh/outrigger/internal/api/specs/v1alpha4"
	splitv1alpha4 "github.com/outrigger-mesh/outrigger/internal/api/split/v1alpha4"
	"github.com/outrigger-mesh/outrigger/internal/ingest"
)

// foreignCRDs are in the shape of OSM's: one version of each kind is served, numbers
// have no bounds and weights need not be whole, and there is no status.
const foreignCRDs = `
{group: access.smi-spec.io, kind: TrafficTarget, versions: [{name: v1alpha3, served: true, storage: true}], spec: {}}
---
{group: specs.smi-spec.io, kind: HTTPRouteGroup, versions: [{name: v1alpha4, served: true, storage: true}], spec: {}}
---
{group: specs.smi-spec.io, kind: TCPRoute, versions: [{name: v1alpha4, served: true, storage: true}],
 spec: {matches: {type: object, properties: {ports: {type: array, items: {type: integer}}}}}}
---
{group: split.smi-spec.io, kind: TrafficSplit, versions: [{name: v1alpha2, served: true, storage: true}, {name: v1alpha4, served: false, storage: false}],
 spec: {service: {type: string}, backends: {type: array, items: {type: object, properties: {service: {type: string}, weight: {type: number}}}}}}
`

// foreignCRD returns the CRD that a line of foreignCRDs stands for.
func foreignCRD(t *testing.T, text string) *apiextensionsv1.CustomResourceDefinition {
	t.Helper()
	var short struct {
		Group, Kind string
		Versions    []apiextensionsv1.CustomResourceDefinitionVersion
		Spec        map[string]apiextensionsv1.JSONSchemaProps
	}
	if err := yaml.Unmarshal([]byte(text), &short); err != nil {
		t.Fatal(err)
	}
	keep := true
	crd := &apiextensionsv1.CustomResourceDefinition{}
	singular := strings.ToLower(short.Kind)
	crd.Name = singular + "s." + short.Group
	crd.Annotations = map[string]string{"api-approved.kubernetes.io": "unapproved, a test"}
	crd.Spec.Group, crd.Spec.Scope = short.Group, apiextensionsv1.NamespaceScoped
	crd.Spec.Names = apiextensionsv1.CustomResourceDefinitionNames{Kind: short.Kind, Plural: singular + "s", Singular: singular, ListKind: short.Kind + "List"}
	for _, v := range short.Versions {
		v.Schema = &apiextensionsv1.CustomResourceValidation{OpenAPIV3Schema: &apiextensionsv1.JSONSchemaProps{
			Type: "object", Properties: map[string]apiextensionsv1.JSONSchemaProps{"spec": {
				Type: "object", Properties: short.Spec, XPreserveUnknownFields: &keep,
			}},
		}}
		crd.Spec.Versions = append(crd.Spec.Versions, v)
	}
	return crd
}

// TestForeignCRDs reads what CRDs of OSM's shape let in: which versions they serve is
// found out, and an object whose numbers are no whole or no small ones stops none of
// the others.
func TestForeignCRDs(t *testing.T) {
	t.Parallel()
	server, err := local.StartAPIServer(t.Context(), t.TempDir()) // where other CRDs have the names
	must(t, err)
	t.Cleanup(server.Stop)
	scheme := newScheme(t)
	c := newPart(t, server.Config, scheme)
	for _, text := range strings.Split(foreignCRDs, "---") {
		c.create(foreignCRD(t, text))
	}
	ask, err := discovery.NewDiscoveryClientForConfig(server.Config)
	if err != nil {
		t.Fatal(err)
	}
	var served []api.Served
	eventually(t, "every kind is found", func() error {
		served, err = api.Discover(ask.ServerResourcesForGroupVersion, apierrors.IsNotFound)
		return err
	})
	want := map[string]string{"TrafficTarget": "v1alpha3", "HTTPRouteGroup": "v1alpha4", "TCPRoute": "v1alpha4", "TrafficSplit": "v1alpha2"}
	for _, k := range served {
		if k.Version != want[k.Name] || k.Status {
			t.Errorf("%s is read as %s, with a status: %v; want %s, without", k.Name, k.Version, k.Status, want[k.Name])
		}
	}
	ns := &corev1.Namespace{}
	ns.Name, ns.Labels = "shop", inMesh
	c.create(ns)
	split := func(name, weight string) string {
		return fmt.Sprintf(`{apiVersion: split.smi-spec.io/v1alpha2, kind: TrafficSplit, metadata: {namespace: shop, name: %s}, spec: {service: %[1]s, backends: [{service: v1, weight: %s}]}}`, name, weight)
	}
	route := func(name, ports string) string {
		return fmt.Sprintf(`{apiVersion: specs.smi-spec.io/v1alpha4, kind: TCPRoute, metadata: {namespace: shop, name: %s}, spec: {matches: {ports: [%s]}}}`, name, ports)
	}
	texts := []string{
		split("good", "50"), split("half", "0.5"), split("billions", "50000000000"), split("huge", "1e+30"), split("negative", "-1"),
		route("good", "80"), route("large", "5000000000"), route("largest", "9007199254740992"),
	}
	for _, text := range texts {
		o := &unstructured.Unstructured{}
		if err := errors.Join(yaml.Unmarshal([]byte(text), &o.Object), c.admin.Create(t.Context(), o)); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
	}
	api.AddServed(scheme, served)
	informers := newPart(t, server.Config, scheme).informers
	var splits splitv1alpha4.TrafficSplitList
	var routes specsv1alpha4.TCPRouteList
	eventually(t, "all are listed", func() error {
		err := errors.Join(informers.List(t.Context(), &splits), informers.List(t.Context(), &routes))
		if err == nil && (len(splits.Items) != 5 || len(routes.Items) != 3) {
			err = fmt.Errorf("%d splits and %d routes", len(splits.Items), len(routes.Items))
		}
		return err
	})
	objs := ingest.Objects{Namespaces: []*corev1.Namespace{ns}}
	for i := range routes.Items {
		objs.TCPRoutes = append(objs.TCPRoutes, &routes.Items[i])
	}
	_, problems := ingest.Build(objs, ingest.Options{TrustDomain: "cluster.local", ClusterDomain: "cluster.local"})
	told := map[string]bool{}
	for _, p := range problems {
		if p.Reason == ingest.BadPort {
			told[p.Object.Name] = true
		}
	}
	if len(told) != 2 || !told["large"] || !told["largest"] {
		t.Errorf("told of bad ports were %v, of %v", told, problems)
	}
	for _, s := range splits.Items {
		weight, ok := s.Spec.Backends[0].Weight.Value()
		wantWeight, wantOK := map[string]int64{"good": 50, "billions": 50_000_000_000, "negative": -1}[s.Name]
		if ok != wantOK || ok && weight != wantWeight {
			t.Errorf("split %s has weight %s, read as %d (%v)", s.Name, s.Spec.Backends[0].Weight, weight, ok)
		}
	}
}
