//go:build integration

package webhook

import (
	"context"
	"encoding/pem"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/discovery"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/outrigger-mesh/outrigger/e2e/cluster/local"
	"github.com/outrigger-mesh/outrigger/internal/api"
	"github.com/outrigger-mesh/outrigger/internal/api/whole"
	"github.com/outrigger-mesh/outrigger/internal/controller"
	"github.com/outrigger-mesh/outrigger/internal/ingest"
)

// TestConversionOnAnAPIServer writes policy in every version of it to a real API
// server, reads it in every other, and wants the mesh to see what was written, and
// what is stored to be there when nobody converts.
func TestConversionOnAnAPIServer(t *testing.T) {
	server, err := local.StartAPIServer(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Stop)
	hook := httptest.NewTLSServer(newHandler(t, cache(namespaces()), nil))
	defer hook.Close()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientscheme.AddToScheme, apiextensionsv1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	c, err := client.New(server.Config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	installCRDs(t, c, hook)
	for _, name := range []string{"shop", "data"} {
		ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"outrigger.dev/inject": "enabled"}}}
		if err := c.Create(t.Context(), ns); err != nil {
			t.Fatal(err)
		}
	}

	written := policies(t)
	for _, o := range written {
		if err := c.Create(t.Context(), o.DeepCopy()); err != nil {
			t.Fatalf("write %s %s: %v", o.GroupVersionKind(), o.GetName(), err)
		}
	}
	for _, o := range written {
		for _, version := range []string{"v1alpha1", "v1alpha2", "v1alpha3", "v1alpha4"} {
			if version == "v1alpha4" && o.GetKind() == "TrafficTarget" {
				continue
			}
			roundTrip(t, c, o, version)
		}
	}

	objs := readPolicy(t, server)
	snap, problems := ingest.Build(objs, ingest.Options{TrustDomain: "cluster.local", ClusterDomain: "cluster.local"})
	if got := len(snap.Dump().Grants); got != 2 {
		t.Errorf("the mesh sees %d grants, want 2: %+v\n%v", got, snap.Dump().Grants, problems)
	}
	for _, g := range snap.Dump().Grants {
		port, narrow := uint16(8080), true
		if g.Server.Namespace == "data" {
			port, narrow = 3306, false
		}
		if len(g.Ports) != 1 || g.Ports[0] != port || g.Narrow != narrow {
			t.Errorf("grant of %s: ports %v, narrow %t; want %d, %t", g.Source, g.Ports, g.Narrow, port, narrow)
		}
	}

	hook.Close()
	if d := cmp.Diff(objs, readPolicy(t, server), cmpopts.EquateComparable(whole.Number{})); d != "" {
		t.Errorf("without anybody who converts, what is stored reads otherwise:\n%s", d)
	}
	old := &unstructured.Unstructured{}
	old.SetGroupVersionKind(written[0].GroupVersionKind())
	if err := c.Get(t.Context(), client.ObjectKeyFromObject(written[0]), old); err == nil || !strings.Contains(err.Error(), "conversion webhook") {
		t.Errorf("an old version without anybody who converts: %v", err)
	}
	for _, o := range written { // kubectl and the namespace controller delete in the preferred version
		o = o.DeepCopy()
		preferred := map[string]string{"TrafficTarget": "v1alpha3"}[o.GetKind()]
		if preferred == "" {
			preferred = "v1alpha4"
		}
		o.SetGroupVersionKind(o.GroupVersionKind().GroupKind().WithVersion(preferred))
		if err := c.Delete(t.Context(), o); err != nil {
			t.Errorf("delete %s without anybody who converts: %v", o.GetName(), err)
		}
	}
}

// installCRDs makes the chart's kinds, converted by hook, and waits until they are
// served.
func installCRDs(t *testing.T, c client.Client, hook *httptest.Server) {
	t.Helper()
	files, err := filepath.Glob("../manifests/crds/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("find the CRDs: %v, %v", files, err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		crd := &apiextensionsv1.CustomResourceDefinition{}
		if err := yaml.UnmarshalStrict(text, crd); err != nil {
			t.Fatal(err)
		}
		if crd.Spec.Conversion != nil {
			crd.Spec.Conversion.Webhook.ClientConfig = &apiextensionsv1.WebhookClientConfig{
				URL: new(hook.URL + PathConvert), CABundle: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: hook.Certificate().Raw}),
			}
		}
		if err := c.Create(t.Context(), crd); err != nil {
			t.Fatal(err)
		}
		eventually(t, crd.Name+" is served", func(ctx context.Context) error {
			var errs error
			for _, v := range crd.Spec.Versions {
				list := &unstructured.UnstructuredList{}
				list.SetAPIVersion(crd.Spec.Group + "/" + v.Name)
				list.SetKind(crd.Spec.Names.ListKind)
				if err := c.List(ctx, list); err != nil {
					errs = err
				}
			}
			return errs
		})
	}
}

func eventually(t *testing.T, what string, done func(context.Context) error) {
	t.Helper()
	var last error
	err := wait.PollUntilContextTimeout(t.Context(), 50*time.Millisecond, 30*time.Second, true, func(ctx context.Context) (bool, error) {
		last = done(ctx)
		return last == nil, nil
	})
	if err != nil {
		t.Fatalf("wait until %s: %v: %v", what, err, last)
	}
}

// policies are the same kinds as users write them in different versions.
func policies(t *testing.T) []*unstructured.Unstructured {
	t.Helper()
	var out []*unstructured.Unstructured
	for _, text := range []string{
		"{apiVersion: access.smi-spec.io/v1alpha1, kind: TrafficTarget, metadata: {namespace: shop, name: a, annotations: {by: me}}, destination: {kind: ServiceAccount, name: store, namespace: shop, port: 8080}, specs: [{kind: HTTPRouteGroup, name: a, matches: [books]}], sources: [{kind: ServiceAccount, name: buyer}]}",
		"{apiVersion: access.smi-spec.io/v1alpha2, kind: TrafficTarget, metadata: {namespace: data, name: b}, spec: {destination: {kind: ServiceAccount, name: db, port: 3306}, rules: [{kind: TCPRoute, name: a}], sources: [{kind: ServiceAccount, name: store, namespace: shop}]}}",
		"{apiVersion: access.smi-spec.io/v1alpha3, kind: TrafficTarget, metadata: {namespace: shop, name: c}, spec: {destination: {kind: ServiceAccount, name: store}, rules: [], sources: []}}",
		"{apiVersion: specs.smi-spec.io/v1alpha1, kind: HTTPRouteGroup, metadata: {namespace: shop, name: a}, matches: [{name: books, pathRegex: /books, methods: [GET]}]}",
		"{apiVersion: specs.smi-spec.io/v1alpha2, kind: HTTPRouteGroup, metadata: {namespace: shop, name: b}, matches: [{name: testers, headers: [{user: '.*@test'}]}]}",
		"{apiVersion: specs.smi-spec.io/v1alpha3, kind: HTTPRouteGroup, metadata: {namespace: shop, name: c}, spec: {matches: [{name: all}]}}",
		"{apiVersion: specs.smi-spec.io/v1alpha1, kind: TCPRoute, metadata: {namespace: data, name: a}}",
		"{apiVersion: specs.smi-spec.io/v1alpha3, kind: TCPRoute, metadata: {namespace: data, name: b}, spec: {}}",
		"{apiVersion: specs.smi-spec.io/v1alpha4, kind: TCPRoute, metadata: {namespace: data, name: c}, spec: {matches: {ports: [3306]}}}",
		"{apiVersion: split.smi-spec.io/v1alpha1, kind: TrafficSplit, metadata: {namespace: shop, name: a}, spec: {service: store, backends: [{service: v1, weight: 1}]}}",
		"{apiVersion: split.smi-spec.io/v1alpha4, kind: TrafficSplit, metadata: {namespace: shop, name: b}, spec: {service: other, matches: [{kind: HTTPRouteGroup, name: a}], backends: [{service: v1, weight: 1}]}}",
	} {
		o := &unstructured.Unstructured{}
		if err := yaml.UnmarshalStrict([]byte(text), &o.Object); err != nil {
			t.Fatal(err)
		}
		out = append(out, o)
	}
	return out
}

// roundTrip reads an object in another version, writes it back in that with a new
// label, and wants it in its own version as it was.
func roundTrip(t *testing.T, c client.Client, o *unstructured.Unstructured, version string) {
	t.Helper()
	get := func(version string) *unstructured.Unstructured {
		found := &unstructured.Unstructured{}
		found.SetGroupVersionKind(o.GroupVersionKind().GroupKind().WithVersion(version))
		if err := c.Get(t.Context(), client.ObjectKeyFromObject(o), found); err != nil {
			t.Fatalf("read %s %s in %s: %v", o.GetKind(), o.GetName(), version, err)
		}
		return found
	}
	before := get(o.GroupVersionKind().Version)
	other := get(version)
	other.SetLabels(map[string]string{"touched": version})
	if err := c.Update(t.Context(), other); err != nil {
		t.Fatalf("write %s %s in %s: %v", o.GetKind(), o.GetName(), version, err)
	}
	after := get(o.GroupVersionKind().Version)
	for _, it := range []*unstructured.Unstructured{before, after} {
		it.SetManagedFields(nil)
		it.SetResourceVersion("")
		it.SetLabels(nil)
	}
	if d := cmp.Diff(before.Object, after.Object); d != "" {
		t.Errorf("%s %s, written in %s, lost through %s (-before +after):\n%s", o.GetKind(), o.GetName(), o.GroupVersionKind().Version, version, d)
	}
}

// readPolicy is what outriggerd reads.
func readPolicy(t *testing.T, server *local.APIServer) ingest.Objects {
	t.Helper()
	served, err := api.Discover(discovery.NewDiscoveryClientForConfigOrDie(server.Config).ServerResourcesForGroupVersion, apierrors.IsNotFound)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range served {
		if !k.Status {
			t.Errorf("%s has no status", k.Name)
		}
	}
	scheme := runtime.NewScheme()
	if err := clientscheme.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	api.AddServed(scheme, served)
	c, err := client.New(server.Config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	objs, err := controller.Objects(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return objs
}
