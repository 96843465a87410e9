//go:build integration

package webhook

import (
	"context"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	admissionregistrationac "k8s.io/client-go/applyconfigurations/admissionregistration/v1"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/outrigger-mesh/outrigger/internal/annotation"
)

// everyKind returns a client of all kinds.
func (w *world) everyKind(t *testing.T) client.Client {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientscheme.AddToScheme, apiextensionsv1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	c, err := client.New(w.config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// refused checks that an error is a refusal of ours which says all of that, or that
// there is none where nothing is to be said.
func refused(err error, says ...string) error {
	if len(says) == 0 {
		return err
	}
	if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), ".refuse.outrigger.dev") {
		return fmt.Errorf("error %w, want a refusal", err)
	}
	for _, text := range says {
		if !strings.Contains(err.Error(), text) {
			return fmt.Errorf("refusal %w does not say %q", err, text)
		}
	}
	return nil
}

// older returns a TrafficTarget in an older version.
func older(version string, target *unstructured.Unstructured) *unstructured.Unstructured {
	target.SetAPIVersion("access.smi-spec.io/" + version)
	spec := target.Object["spec"].(map[string]any)
	if version == "v1alpha1" { // everything is at the top, and rules have another name
		delete(target.Object, "spec")
		for _, field := range []string{"destination", "sources"} {
			target.Object[field] = spec[field]
		}
		target.Object["specs"] = spec["rules"]
	}
	return target
}

// testRefusals creates what is right and what is not, in and outside the mesh.
func (w *world) testRefusals(t *testing.T) {
	c := w.everyKind(t)
	installCRDs(t, c, w.hook)
	type notes = map[string]string
	in := func(namespace, kind string, annotations notes) client.Object {
		o := annotatedObject(kind, annotations).(client.Object)
		o.SetNamespace(namespace)
		switch o := o.(type) {
		case *corev1.Service:
			o.Spec.Ports = []corev1.ServicePort{{Port: 80}}
		case *corev1.Pod:
			o.Spec.Containers = []corev1.Container{{Name: "app", Image: "example.com/app:1"}}
		}
		return o
	}
	owned := in("enabled", "Pod", notes{annotation.MTLS: "maybe"})
	owned.SetName("")
	owned.SetGenerateName("web-7d-")
	owned.SetOwnerReferences([]metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "web-7d", UID: "1"}})
	destination := func(own, other string) []string {
		return []string{"TrafficTarget " + own + "/target: spec.destination.namespace", `"` + other + `" is not allowed; use "` + own + `"`}
	}
	cases := map[string]struct {
		object client.Object
		says   []string
	}{
		"target of another namespace":             {object: trafficTarget("enabled", "disabled"), says: destination("enabled", "disabled")},
		"target where pods ask":                   {object: trafficTarget("disabled", "enabled"), says: destination("disabled", "enabled")},
		"target by OSM's label":                   {object: trafficTarget("osm", "enabled"), says: destination("osm", "enabled")},
		"target in v1alpha2":                      {object: older("v1alpha2", trafficTarget("enabled", "plain")), says: destination("enabled", "plain")},
		"target in v1alpha1":                      {object: older("v1alpha1", trafficTarget("enabled", "plain")), says: destination("enabled", "plain")},
		"target in its destination's namespace":   {object: trafficTarget("enabled", "enabled")},
		"target that leaves it out":               {object: trafficTarget("enabled", "")},
		"good target in v1alpha1":                 {object: older("v1alpha1", trafficTarget("enabled", "enabled"))},
		"target outside the mesh":                 {object: trafficTarget("plain", "enabled")},
		"target in an ignored namespace":          {object: trafficTarget("ignored", "enabled")},
		"target in another mesh":                  {object: trafficTarget("another-osm", "enabled")},
		"service with a bad value":                {object: in("enabled", "Service", notes{annotation.Timeout: "soon"}), says: []string{`Service enabled/x: service annotation outrigger.dev/timeout: "soon" is not allowed; use `}},
		"service by OSM's label":                  {object: in("osm", "Service", notes{annotation.Timeout: "soon"}), says: []string{"annotations.osm", annotation.Timeout}},
		"service with an unknown key":             {object: in("enabled", "Service", notes{"outrigger.dev/timeot": "1s"}), says: []string{"use outrigger.dev/timeout"}},
		"good service":                            {object: in("enabled", "Service", notes{annotation.Timeout: "3s", annotation.MTLS: "strict, 80=permissive"})},
		"service outside the mesh":                {object: in("plain", "Service", notes{annotation.Timeout: "soon"})},
		"pod with a bad value":                    {object: in("enabled", "Pod", notes{annotation.MTLS: "maybe"}), says: []string{`Pod enabled/x: pod annotation outrigger.dev/mtls: "maybe" is not allowed; use `}},
		"pod of a controller with a bad value":    {object: owned, says: []string{"Pod enabled/web-7d-", annotation.MTLS}},
		"good pod, which gets a sidecar":          {object: in("enabled", "Pod", notes{annotation.MTLS: "permissive", annotation.ProxyCPU: "20m"})},
		"pod outside the mesh with a bad value":   {object: in("plain", "Pod", notes{annotation.MTLS: "maybe"})},
		"namespace with a bad value":              {object: in("", "Namespace", notes{annotation.TrafficPolicy: "open"}), says: []string{`Namespace x: namespace annotation outrigger.dev/traffic-policy: "open" is not allowed; use `}},
		"good namespace":                          {object: in("", "Namespace", notes{annotation.TrafficPolicy: "enforced"})},
		"namespace with somebody else's key only": {object: in("", "Namespace", notes{"example.com/x": "open"})},
	}
	// The API server learns of the older versions some time after it serves them.
	for _, version := range []string{"v1alpha1", "v1alpha2", "v1alpha3"} {
		eventually(t, version+" of TrafficTarget is judged", func(ctx context.Context) error {
			return refused(c.Create(ctx, older(version, trafficTarget("enabled", "plain")), client.DryRunAll), "spec.destination.namespace")
		})
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			err := c.Create(t.Context(), tc.object, client.DryRunAll)
			if err := refused(err, tc.says...); err != nil {
				t.Error(err)
			}
			if pod, ok := tc.object.(*corev1.Pod); ok && len(tc.says) == 0 && hasSidecar(pod) != (pod.Namespace == "enabled") {
				t.Errorf("sidecar %t in namespace %s", hasSidecar(pod), pod.Namespace)
			}
		})
	}
}

// testOldMistakes has a namespace with mistakes in it join the mesh. Changes that
// leave them alone are let in, new mistakes are not, and nothing holds a deletion.
func (w *world) testOldMistakes(t *testing.T) {
	c := w.everyKind(t)
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "joining"}}
	service := annotatedObject("Service", map[string]string{annotation.Timeout: "soon"}).(*corev1.Service)
	service.Namespace, service.Spec.Ports = ns.Name, []corev1.ServicePort{{Port: 80}}
	target := trafficTarget(ns.Name, "plain")
	target.SetFinalizers([]string{"example.com/holds"})
	for _, o := range []client.Object{ns, service, target} {
		if err := c.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	patch := func(ctx context.Context, o client.Object, text string) error {
		return c.Patch(ctx, o, client.RawPatch(types.MergePatchType, []byte(text)))
	}
	if err := patch(t.Context(), ns, `{"metadata":{"labels":{"outrigger.dev/inject":"enabled"}}}`); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the API server knows that the namespace has joined", func(ctx context.Context) error {
		return refused(c.Create(ctx, trafficTarget(ns.Name, "enabled"), client.DryRunAll), "spec.destination.namespace")
	})
	for _, step := range []struct {
		name, patch string
		object      client.Object
		says        []string
	}{
		{name: "another annotation beside an old mistake", object: service, patch: `{"metadata":{"annotations":{"outrigger.dev/mtls":"permissive"}}}`},
		{name: "a new mistake beside it", object: service, patch: `{"metadata":{"annotations":{"outrigger.dev/mtls":"maybe"}}}`, says: []string{`"maybe" is not allowed`}},
		{name: "another mistake in its place", object: service, patch: `{"metadata":{"annotations":{"outrigger.dev/timeout":"later"}}}`, says: []string{`"later" is not allowed`}},
		{name: "a change of something else", object: service, patch: `{"metadata":{"labels":{"a":"b"}}}`},
		{name: "the mistake is mended", object: service, patch: `{"metadata":{"annotations":{"outrigger.dev/timeout":"3s"}}}`},
		{name: "it comes back", object: service, patch: `{"metadata":{"annotations":{"outrigger.dev/timeout":"soon"}}}`, says: []string{`"soon" is not allowed`}},
		{name: "another source of an old target", object: target, patch: `{"spec":{"sources":[{"kind":"ServiceAccount","name":"other"}]}}`},
		{name: "another destination of it", object: target, patch: `{"spec":{"destination":{"namespace":"enabled"}}}`, says: []string{`"enabled" is not allowed`}},
		{name: "a bad value on a namespace", object: ns, patch: `{"metadata":{"annotations":{"outrigger.dev/egress":"perhaps"}}}`, says: []string{"Namespace joining: ", annotation.Egress, `"perhaps" is not allowed`}},
		{name: "a good value on it", object: ns, patch: `{"metadata":{"annotations":{"outrigger.dev/egress":"deny"}}}`},
	} {
		if err := refused(patch(t.Context(), step.object.DeepCopyObject().(client.Object), step.patch), step.says...); err != nil {
			t.Errorf("%s: %v", step.name, err)
		}
	}
	if err := c.Delete(t.Context(), target); err != nil {
		t.Errorf("delete a target with a mistake: %v", err)
	}
	if err := patch(t.Context(), target, `{"metadata":{"finalizers":null}}`); err != nil {
		t.Errorf("let go of a target with a mistake: %v", err)
	}
}

// testSwitchOff applies the configuration as an installation does, the caBundles as
// outriggerd does, and then the configuration in which any TrafficTarget may be.
func (w *world) testSwitchOff(t *testing.T) {
	hooks := w.client.AdmissionregistrationV1().ValidatingWebhookConfigurations()
	o := w.options()
	bundle := o.CABundle
	o.Name, o.CABundle = "applied", nil
	apply := func(manager string, object any) {
		t.Helper()
		opts := metav1.PatchOptions{FieldManager: manager, Force: new(true)}
		if _, err := hooks.Patch(t.Context(), o.Name, types.ApplyPatchType, marshal(t, object), opts); err != nil {
			t.Fatal(err)
		}
	}
	_, validating := Configurations(o)
	apply("helm", validating)
	own := admissionregistrationac.ValidatingWebhookConfiguration(o.Name)
	for _, hook := range validating.Webhooks {
		own.WithWebhooks(admissionregistrationac.ValidatingWebhook().WithName(hook.Name).
			WithClientConfig(admissionregistrationac.WebhookClientConfig().WithCABundle(bundle...)))
	}
	apply("outriggerd", own)
	o.AnyTrafficTarget = true
	_, validating = Configurations(o)
	apply("helm", validating)
	got, err := hooks.Get(t.Context(), o.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for i, hook := range got.Webhooks {
		if len(hook.ClientConfig.CABundle) == 0 || len(hook.MatchConditions) != len(validating.Webhooks[i].MatchConditions) {
			t.Errorf("webhook %s has a caBundle of %d bytes, and conditions %v", hook.Name, len(hook.ClientConfig.CABundle), hook.MatchConditions)
		}
	}
	if err := hooks.Delete(t.Context(), o.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
}

// testAnyTrafficTarget switches the webhooks of TrafficTargets off. Annotations are
// judged still.
func (w *world) testAnyTrafficTarget(t *testing.T) {
	c := w.everyKind(t)
	o := w.options()
	o.AnyTrafficTarget = true
	_, validating := Configurations(o)
	hooks := w.client.AdmissionregistrationV1().ValidatingWebhookConfigurations()
	before, err := hooks.Get(t.Context(), validating.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	validating.ResourceVersion = before.ResourceVersion
	if _, err := hooks.Update(t.Context(), validating, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a TrafficTarget may be anywhere", func(ctx context.Context) error {
		return c.Create(ctx, trafficTarget("enabled", "disabled"), client.DryRunAll)
	})
	for _, object := range []*unstructured.Unstructured{trafficTarget("osm", "enabled"), trafficTarget("plain", "enabled"), trafficTarget("enabled", "enabled"), older("v1alpha1", trafficTarget("enabled", "plain"))} {
		if err := c.Create(t.Context(), object, client.DryRunAll); err != nil {
			t.Error(err)
		}
	}
	bad := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "x", Annotations: map[string]string{annotation.Egress: "perhaps"}}}
	if err := refused(c.Create(t.Context(), bad, client.DryRunAll), annotation.Egress); err != nil {
		t.Error(err)
	}
}
