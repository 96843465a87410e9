//go:build integration

package controller

import (
	"context"
	"errors"
	"testing"

	"github.com/go-logr/logr"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/outrigger-mesh/outrigger/internal/ingest"
)

// meshConfigCRD is OSM's, as far as it matters here.
const meshConfigCRD = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: meshconfigs.config.openservicemesh.io}
spec:
  group: config.openservicemesh.io
  scope: Namespaced
  names: {kind: MeshConfig, listKind: MeshConfigList, plural: meshconfigs, singular: meshconfig}
  versions:
    - name: v1alpha2
      served: true
      storage: true
      schema:
        openAPIV3Schema:
          type: object
          properties:
            spec: {type: object, x-kubernetes-preserve-unknown-fields: true}
`

// TestMeshConfig reads OSM's MeshConfig from a cluster that gets the kind late, and
// keeps what it has read where it cannot read any more.
func TestMeshConfig(t *testing.T) {
	w := newTurning(t)
	changes := 0
	r := &MeshConfigReader{Client: w.admin, Namespace: w.system, Changed: func() { changes++ }, Log: logr.Discard()}
	if _, err := r.Now(); err == nil {
		t.Error("before the first look nothing is known, and it gives no error")
	}
	want := func(why, version string, changed int) {
		t.Helper()
		config, err := r.Now()
		got := ""
		if config != nil {
			got, _, _ = unstructured.NestedString(config.Object, "spec", "sidecar", "tlsMinProtocolVersion")
		}
		if err != nil || got != version || changes != changed {
			t.Errorf("%s: it says %q after %d changes, %v; want %q after %d", why, got, changes, err, version, changed)
		}
	}
	look := func(why, version string, changed int) {
		t.Helper()
		if err := r.look(t.Context()); err != nil {
			t.Fatalf("%s: %v", why, err)
		}
		want(why, version, changed)
	}
	nobody, err := client.New(rest.AnonymousClientConfig(apiServer.Config), client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	blind := &MeshConfigReader{Client: nobody, Namespace: w.system, Changed: func() { changes++ }, Log: logr.Discard()}
	for look := 1; look <= firstLooks; look++ {
		if err := blind.look(t.Context()); err == nil {
			t.Fatal("it can be read without a right")
		}
		if _, err := blind.Now(); (err == nil) != (look == firstLooks) {
			t.Errorf("after %d looks that failed: %v; the mesh goes on without one after %d", look, err, firstLooks)
		}
	}
	if changes != 1 {
		t.Errorf("that one cannot be read was told %d times; want once", changes)
	}
	changes = 0
	look("a cluster without the kind", "", 1)
	look("the same", "", 1)

	crd := &apiextensionsv1.CustomResourceDefinition{}
	if err := yaml.Unmarshal([]byte(meshConfigCRD), crd); err != nil {
		t.Fatal(err)
	}
	w.create(crd)
	t.Cleanup(func() { // the API server is other tests' too
		if err := w.admin.Delete(context.WithoutCancel(t.Context()), crd); err != nil {
			t.Error(err)
		}
		eventually(t, "the kind is gone", func() error {
			err := w.admin.Get(context.WithoutCancel(t.Context()), client.ObjectKeyFromObject(crd), crd)
			if err == nil {
				return errors.New("it is there")
			}
			return client.IgnoreNotFound(err)
		})
	})
	config := &unstructured.Unstructured{}
	eventually(t, "MeshConfigs can be made", func() error {
		config = &unstructured.Unstructured{Object: map[string]any{"spec": map[string]any{"sidecar": map[string]any{"tlsMinProtocolVersion": "TLSv1_2"}}}}
		config.SetAPIVersion(ingest.MeshConfigAPIVersion)
		config.SetKind(ingest.MeshConfigKind)
		config.SetNamespace(w.system)
		config.SetName(ingest.MeshConfigName)
		return w.admin.Create(t.Context(), config)
	})
	look("a MeshConfig", "TLSv1_2", 2)
	look("the same", "TLSv1_2", 2)
	patch := client.RawPatch("application/merge-patch+json", []byte(`{"spec":{"sidecar":{"tlsMinProtocolVersion":"TLSv1_3"}}}`))
	if err := w.admin.Patch(t.Context(), config, patch); err != nil {
		t.Fatal(err)
	}
	look("an edit", "TLSv1_3", 3)

	may := r.Client
	r.Client = nobody
	if err := r.look(t.Context()); err == nil {
		t.Error("it can be read without a right")
	}
	want("what cannot be read", "TLSv1_3", 3)
	r.Client = may
	if err := w.admin.Delete(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	look("none any more", "", 4)
}
