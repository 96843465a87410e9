//go:build integration

package controller

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/outrigger-mesh/outrigger/e2e/osm"
	"github.com/outrigger-mesh/outrigger/internal/rotation"
)

// rootOf is a MeshRootCertificate of the built-in provider.
func (w *turning) rootOf(name, role string) *unstructured.Unstructured {
	u := &unstructured.Unstructured{Object: map[string]any{
		"spec": map[string]any{
			"role": role, "trustDomain": "old",
			"provider": map[string]any{"tresor": map[string]any{"ca": map[string]any{"secretRef": map[string]any{"name": name, "namespace": w.system}}}},
		},
	}}
	u.SetGroupVersionKind(rootKind())
	u.SetNamespace(w.system)
	u.SetName(name)
	return u
}

func (w *turning) installRoots() {
	w.t.Helper()
	crd := &apiextensionsv1.CustomResourceDefinition{}
	if err := yaml.Unmarshal([]byte(osm.MeshRootCertificates), crd); err != nil {
		w.t.Fatal(err)
	}
	w.create(crd)
	eventually(w.t, "MeshRootCertificates are served", func() error {
		list := &unstructured.UnstructuredList{}
		list.SetGroupVersionKind(rootKind())
		return w.admin.List(w.t.Context(), list)
	})
}

// role edits the role of a MeshRootCertificate.
func (w *turning) role(name, role string) {
	w.t.Helper()
	patch := fmt.Sprintf(`{"spec":{"role":%q}}`, role)
	if err := w.admin.Patch(w.t.Context(), w.rootOf(name, ""), client.RawPatch("application/merge-patch+json", []byte(patch))); err != nil {
		w.t.Fatal(err)
	}
}

// conditions of a MeshRootCertificate, "Type=Status message" each.
func (w *turning) conditions(name string) string {
	w.t.Helper()
	u := w.rootOf(name, "")
	if err := w.admin.Get(w.t.Context(), client.ObjectKeyFromObject(u), u); err != nil {
		w.t.Fatal(err)
	}
	found, _, err := unstructured.NestedSlice(u.Object, "status", "conditions")
	if err != nil {
		w.t.Fatal(err)
	}
	text, err := json.Marshal(found)
	if err != nil {
		w.t.Fatal(err)
	}
	var conditions []metav1.Condition
	if err := json.Unmarshal(text, &conditions); err != nil {
		w.t.Fatal(err)
	}
	var lines []string
	for _, c := range conditions {
		lines = append(lines, fmt.Sprintf("%s=%s %s", c.Type, c.Status, c.Message))
	}
	return strings.Join(lines, "\n")
}

// TestMeshRootCertificates edits roles as OSM's end-to-end test does, with a pod that
// is away while a step would cut it. What the command line said before does not count
// while roles decide, and not after that either.
func TestMeshRootCertificates(t *testing.T) {
	w := newTurning(t)
	pods := []*corev1.Pod{w.pod(w.shop, "one", nil), w.pod(w.shop, "two", nil)}
	w.replica("outriggerd-1", pods)
	defer w.rotator()()
	w.read()
	w.want(func(c *rotation.Control) {
		c.Goal, c.By, c.Chart, c.Forced = rotation.Goal{Sign: builtIn("a", "old")}, "a test", true, []string{w.shop + "/two"}
	})
	w.installRoots()
	w.create(w.rootOf("a", rotation.RoleActive))
	w.create(w.rootOf("b", rotation.RoleInactive))

	settled := func(step, signs, trusts, a, b string) {
		t.Helper()
		eventually(t, step, func() error {
			s := w.read().State
			if got := strings.Join(s.Names(), "+"); s.Rotation != nil || s.Signing != signs || got != trusts {
				return fmt.Errorf("%s signs and %s is trusted; want %s and %s", s.Signing, got, signs, trusts)
			}
			for name, want := range map[string]string{"a": a, "b": b} {
				got := w.conditions(name)
				for _, c := range strings.Fields(want) {
					if !strings.Contains(got, c+" ") {
						return fmt.Errorf("%s is\n%s\nwant %s", name, got, want)
					}
				}
			}
			return nil
		})
	}
	const signing, validating, unused = "Accepted=True ValidatingRollout=True IssuingRollout=True", "Accepted=True ValidatingRollout=True IssuingRollout=False", "Accepted=True ValidatingRollout=False IssuingRollout=False"
	settled("1: a active", "a", "a", signing, unused)
	w.role("b", rotation.RolePassive)
	settled("2: b passive", "a", "a+b", signing, validating)
	w.role("b", rotation.RoleActive)
	settled("3: both active", "a", "a+b", signing, validating)
	w.role("a", rotation.RolePassive)
	settled("4: a passive", "b", "a+b", validating, signing)

	w.mu.Lock()
	w.away[string(pods[1].UID)] = true
	w.mu.Unlock()
	w.role("a", rotation.RoleInactive)
	eventually(t, "leaving a waits for the pod that is away", func() error {
		if got := w.conditions("a"); !strings.Contains(got, w.shop+"/two") {
			return fmt.Errorf("a is\n%s", got)
		}
		return nil
	})
	w.mu.Lock()
	w.away = map[string]bool{}
	w.mu.Unlock()
	settled("5: a inactive", "b", "b", unused, signing)

	w.role("b", rotation.RolePassive)
	eventually(t, "no active root changes nothing, and is told", func() error {
		if got := w.conditions("b"); !strings.Contains(got, "Accepted=False 0 MeshRootCertificates are active and 1 passive") {
			return fmt.Errorf("b is\n%s", got)
		}
		return nil
	})
	for _, name := range []string{"a", "b"} {
		if err := w.admin.Delete(t.Context(), w.rootOf(name, "")); err != nil {
			t.Fatal(err)
		}
	}
	// Whatever the rotator does without roles, it has done when it takes the next wish.
	w.want(func(c *rotation.Control) { c.Goal.Sign.TrustDomain = "newer" })
	eventually(t, "the command line decides again", func() error {
		if r := w.read().State.Rotation; r == nil || r.Goal.Sign.Name != "b" || r.Goal.Sign.TrustDomain != "newer" {
			return fmt.Errorf("under way is %+v", r)
		}
		return nil
	})
	s := w.read().State
	if s.Rotation.From != "b" || s.Last.Goal.Sign.Name != "b" || s.Chart.Name != "a" {
		t.Errorf("the mesh moved when roles were gone: %s", s.JSON())
	}
}
