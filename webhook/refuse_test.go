package webhook

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/go-logr/logr/testr"
	"github.com/google/go-cmp/cmp"
	admissionv1 "k8s.io/api/admission/v1"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/version"
	admissioncel "k8s.io/apiserver/pkg/admission/plugin/cel"
	accessor "k8s.io/apiserver/pkg/admission/plugin/webhook"
	"k8s.io/apiserver/pkg/cel/environment"

	"github.com/outrigger-mesh/outrigger/injector"
	"github.com/outrigger-mesh/outrigger/internal/annotation"
	"github.com/outrigger-mesh/outrigger/internal/rotation"
)

// trafficTarget is one in a namespace, whose destination is in another one, or not
// said where that is empty.
func trafficTarget(namespace, destination string) *unstructured.Unstructured {
	to := map[string]any{"kind": "ServiceAccount", "name": "server"}
	if destination != "" {
		to["namespace"] = destination
	}
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "access.smi-spec.io/v1alpha3", "kind": "TrafficTarget",
		"metadata": map[string]any{"name": "target", "namespace": namespace},
		"spec": map[string]any{
			"destination": to,
			"rules":       []any{map[string]any{"kind": "TCPRoute", "name": "all"}},
			"sources":     []any{map[string]any{"kind": "ServiceAccount", "name": "client", "namespace": namespace}},
		},
	}}
}

// annotatedObject returns an object of the core group with annotations.
func annotatedObject(kind string, annotations map[string]string) runtime.Object {
	meta := metav1.ObjectMeta{Name: "x", Annotations: annotations}
	of := metav1.TypeMeta{APIVersion: "v1", Kind: kind}
	switch kind {
	case "Namespace":
		return &corev1.Namespace{TypeMeta: of, ObjectMeta: meta}
	case "Service":
		return &corev1.Service{TypeMeta: of, ObjectMeta: meta}
	default:
		return &corev1.Pod{TypeMeta: of, ObjectMeta: meta}
	}
}

func TestRefuse(t *testing.T) {
	type notes = map[string]string
	slow := notes{annotation.Timeout: "soon"}
	soon := `service annotation outrigger.dev/timeout: "soon" is not allowed; use `
	cases := map[string]struct {
		reason, namespace string
		object, old       runtime.Object
		says              []string // one line each; none is allowed
	}{
		"own namespace":     {reason: "its owner's decision", object: trafficTarget("shop", "shop")},
		"no namespace said": {reason: "it is the TrafficTarget's", object: trafficTarget("shop", "")},
		"another namespace": {
			reason: "whoever owns the server decides", object: trafficTarget("shop", "data"),
			says: []string{`TrafficTarget shop/target: spec.destination.namespace: "data" is not allowed; use "shop", the namespace of the TrafficTarget, or create it in namespace "data"`},
		},
		"old mistake in a TrafficTarget": {reason: "it has no effect already", object: trafficTarget("shop", "data"), old: trafficTarget("shop", "data")},
		"new mistake in a TrafficTarget": {reason: "it had an effect", object: trafficTarget("shop", "data"), old: trafficTarget("shop", "shop"), says: []string{"spec.destination.namespace"}},
		"another mistake in its place":   {reason: "it is a new one", object: trafficTarget("shop", "data"), old: trafficTarget("shop", "web"), says: []string{`"data" is not allowed`}},

		"good annotations": {reason: "all is well", object: annotatedObject("Service", notes{annotation.Timeout: "3s", "example.com/x": "y"})},
		"bad value":        {reason: "it would be ignored", object: annotatedObject("Service", slow), says: []string{"Service shop/x: " + soon}},
		"two bad values": {
			reason: "both are told at once", object: annotatedObject("Service", notes{annotation.Timeout: "soon", annotation.MTLS: "maybe"}),
			says: []string{annotation.MTLS, annotation.Timeout},
		},
		"unknown key":    {reason: "a typing error would do nothing", object: annotatedObject("Service", notes{"outrigger.dev/timeot": "3s"}), says: []string{"outrigger.dev/timeot is not known; use outrigger.dev/timeout"}},
		"bad namespace":  {reason: "it is not said to be in itself", namespace: "x", object: annotatedObject("Namespace", notes{annotation.TrafficPolicy: "open"}), says: []string{"Namespace x: namespace annotation outrigger.dev/traffic-policy: \"open\" is not allowed; use "}},
		"bad pod":        {reason: "pods say less than Services", object: annotatedObject("Pod", notes{annotation.Timeout: "3s"}), says: []string{"Pod shop/x: pod annotation outrigger.dev/timeout has no effect on a pod"}},
		"old mistake":    {reason: "an old build knew fewer keys, or none was asked", object: annotatedObject("Service", notes{annotation.Timeout: "soon", "x": "y"}), old: annotatedObject("Service", slow)},
		"beside an old":  {reason: "only the new one is told", object: annotatedObject("Service", notes{annotation.Timeout: "soon", annotation.MTLS: "maybe"}), old: annotatedObject("Service", slow), says: []string{annotation.MTLS}},
		"worse than old": {reason: "whoever touches a value can mend it", object: annotatedObject("Service", notes{annotation.Timeout: "later"}), old: annotatedObject("Service", slow), says: []string{`"later" is not allowed`}},

		"pod of a controller": {
			reason: "the ReplicaSet's events tell of it, and its name is not made up yet",
			object: &corev1.Pod{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}, ObjectMeta: metav1.ObjectMeta{
				GenerateName: "web-7d-", Annotations: notes{annotation.MTLS: "x"}, OwnerReferences: []metav1.OwnerReference{{Kind: "ReplicaSet", Name: "web-7d"}},
			}},
			says: []string{"Pod shop/web-7d-*: pod annotation outrigger.dev/mtls"},
		},
		"another kind": {reason: "nobody asks about it", object: &corev1.Secret{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"}, ObjectMeta: metav1.ObjectMeta{Annotations: slow}}},
	}
	h := newHandler(t, broken{}, func(v injector.Verdict) { t.Errorf("counted %v, but nothing was to be injected", v) })
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			r := &admissionv1.AdmissionRequest{
				UID: "u-3", Kind: metav1.GroupVersionKind(tc.object.GetObjectKind().GroupVersionKind()), Operation: admissionv1.Create,
				Namespace: or(tc.namespace, "shop"), Object: runtime.RawExtension{Raw: marshal(t, tc.object)},
			}
			if tc.old != nil {
				r.Operation, r.OldObject.Raw = admissionv1.Update, marshal(t, tc.old)
			}
			got := ask(t, h, PathRefuse, r)
			if got.Allowed != (len(tc.says) == 0) {
				t.Fatalf("%s: allowed %v: %+v", tc.reason, got.Allowed, got.Result)
			}
			if got.Allowed {
				return
			}
			if got.Result.Code != 403 || got.Result.Reason != metav1.StatusReasonForbidden {
				t.Errorf("refused as %d %s, want forbidden", got.Result.Code, got.Result.Reason)
			}
			lines := strings.Split(got.Result.Message, "\n")
			if len(lines) != len(tc.says) {
				t.Fatalf("%s: said %q, want %d lines", tc.reason, lines, len(tc.says))
			}
			for i, says := range tc.says {
				if !strings.Contains(lines[i], says) {
					t.Errorf("%s: %q does not say %q", tc.reason, lines[i], says)
				}
			}
		})
	}
}

// TestRefuseLetsInWhatItCannotRead sends objects that no API server would.
func TestRefuseLetsInWhatItCannotRead(t *testing.T) {
	h := newHandler(t, broken{}, nil)
	for _, raw := range []struct{ object, old string }{{"", ""}, {`{"metadata":7}`, ""}, {`{"metadata":{"annotations":{"outrigger.dev/mtls":"x"}}}`, `{"metadata":7}`}} {
		r := &admissionv1.AdmissionRequest{UID: "u", Kind: metav1.GroupVersionKind{Kind: "Service"}}
		if raw.object != "" {
			r.Object.Raw = []byte(raw.object)
		}
		if raw.old != "" {
			r.OldObject.Raw = []byte(raw.old)
		}
		if got := ask(t, h, PathRefuse, r); !got.Allowed {
			t.Errorf("object %s, before %s: %+v, want allowed", raw.object, raw.old, got.Result)
		}
	}
}

// refusing returns those webhooks whose answer may be a refusal, by their name.
func refusing(o Options) map[string]*admissionregistrationv1.ValidatingWebhook {
	_, validating := Configurations(o)
	list := map[string]*admissionregistrationv1.ValidatingWebhook{}
	for i, w := range validating.Webhooks {
		if name, ok := strings.CutSuffix(w.Name, ".refuse.outrigger.dev"); ok {
			list[name] = &validating.Webhooks[i]
		}
	}
	return list
}

// TestRefusalsAskedFor wants the API server's own evaluator to ask about what
// could be a mistake, and about nothing else.
func TestRefusalsAskedFor(t *testing.T) {
	type notes = map[string]string
	ours, more := notes{annotation.Timeout: "3s"}, notes{annotation.Timeout: "3s", "x": "y"}
	deleted := annotatedObject("Service", more).(*corev1.Service)
	deleted.DeletionTimestamp = new(metav1.Now())
	leaving := trafficTarget("shop", "data")
	leaving.SetDeletionTimestamp(new(metav1.Now()))
	cases := map[string]struct {
		reason, hook, resource string
		object, old            runtime.Object
		want                   bool
	}{
		"namespace":           {reason: "it has a key of ours", hook: "namespaces", resource: "namespaces", object: annotatedObject("Namespace", ours), want: true},
		"silent namespace":    {reason: "most of them", hook: "namespaces", resource: "namespaces", object: annotatedObject("Namespace", notes{"example.com/outrigger.dev": "x"})},
		"service":             {reason: "it has a key of ours", hook: "annotations.mesh", resource: "services", object: annotatedObject("Service", ours), want: true},
		"by OSM's label":      {reason: "it has a key of ours", hook: "annotations.osm", resource: "services", object: annotatedObject("Service", ours), want: true},
		"nothing at all":      {reason: "there are no annotations", hook: "annotations.mesh", resource: "services", object: annotatedObject("Service", nil)},
		"annotations as were": {reason: "something else changed", hook: "annotations.mesh", resource: "services", object: annotatedObject("Service", ours), old: annotatedObject("Service", ours)},
		"annotation added":    {reason: "it may be a mistake", hook: "annotations.mesh", resource: "services", object: annotatedObject("Service", more), old: annotatedObject("Service", ours), want: true},
		"first annotation":    {reason: "it may be a mistake", hook: "annotations.mesh", resource: "services", object: annotatedObject("Service", ours), old: annotatedObject("Service", nil), want: true},
		"annotations gone":    {reason: "nothing is left to be wrong", hook: "annotations.mesh", resource: "services", object: annotatedObject("Service", nil), old: annotatedObject("Service", ours)},
		"being deleted":       {reason: "nothing must hold it", hook: "annotations.mesh", resource: "services", object: deleted, old: annotatedObject("Service", ours)},
		"pod":                 {reason: "it has a key of ours", hook: "annotations.mesh", resource: "pods", object: annotatedObject("Pod", ours), want: true},
		"mirror pod":          {reason: "the kubelet runs it whatever is said", hook: "annotations.mesh", resource: "pods", object: annotatedObject("Pod", notes{annotation.Timeout: "3s", corev1.MirrorPodAnnotationKey: "x"})},
		"TrafficTarget":       {reason: "there are few of them", hook: "traffictargets.mesh", resource: "traffictargets", object: trafficTarget("shop", ""), want: true},
		"changed target":      {reason: "its destination may have", hook: "traffictargets.osm", resource: "traffictargets", object: trafficTarget("shop", ""), old: trafficTarget("shop", "shop"), want: true},
		"target goes":         {reason: "nothing must hold it", hook: "traffictargets.mesh", resource: "traffictargets", object: leaving, old: trafficTarget("shop", "data")},
	}
	hooks, anywhere := refusing(options()), options()
	anywhere.AnyTrafficTarget = true
	whereAny := refusing(anywhere)
	for kubernetes, env := range map[string]*environment.EnvSet{
		"1.29": environment.MustBaseEnvSet(version.MajorMinor(1, 29)), "newest": environment.MustBaseEnvSet(environment.DefaultCompatibilityVersion()),
	} {
		compiler := admissioncel.NewConditionCompiler(env)
		for name, tc := range cases {
			t.Run(kubernetes+"/"+name, func(t *testing.T) {
				matches := func(w *admissionregistrationv1.ValidatingWebhook) bool {
					result := accessor.NewValidatingWebhookAccessor(w.Name, "c", w).GetCompiledMatcher(compiler).
						Match(t.Context(), replacing(t, tc.resource, tc.object, tc.old), nil, nil)
					if result.Error != nil {
						t.Error(result.Error)
					}
					return result.Matches
				}
				if got := matches(hooks[tc.hook]); got != tc.want {
					t.Errorf("%s: matches %v, want %v", tc.reason, got, tc.want)
				}
				want := tc.want && tc.resource != "traffictargets"
				if got := matches(whereAny[tc.hook]); got != want {
					t.Errorf("where a TrafficTarget may be anywhere: matches %v, want %v", got, want)
				}
			})
		}
	}
}

// TestRefusalsInTheMeshOnly wants one webhook of each kind to select a namespace
// that is in the mesh, and none another one but the system namespace.
func TestRefusalsInTheMeshOnly(t *testing.T) {
	for name, ns := range namespaces() {
		var want []string
		switch injector.MatchNamespace(ns, settings()) {
		case injector.MatchOn, injector.MatchAsk:
			want = []string{"annotations.mesh", "traffictargets.mesh"}
		case injector.MatchOSM:
			want = []string{"annotations.osm", "traffictargets.osm"}
		}
		if name == options().SystemNamespace { // which has the mesh's roots, and nothing of the mesh else
			want = []string{"roots"}
		}
		selected := map[string]bool{}
		for hook, w := range refusing(options()) {
			selector, err := accessor.NewValidatingWebhookAccessor(w.Name, "c", w).GetParsedNamespaceSelector()
			if err != nil {
				t.Fatal(err)
			}
			if w.NamespaceSelector != nil && selector.Matches(withName(ns)) {
				selected[hook] = true
			}
		}
		wanted := map[string]bool{}
		for _, hook := range want {
			wanted[hook] = true
		}
		if diff := cmp.Diff(wanted, selected); diff != "" {
			t.Errorf("namespace %s (-want +got):\n%s", name, diff)
		}
	}
}

// TestRootsAreJudgedBesideTheOthers wants OSM's message for a second active root.
func TestRootsAreJudgedBesideTheOthers(t *testing.T) {
	root := func(name, role string) []byte {
		return fmt.Appendf(nil, `{"metadata":{"name":%q},"spec":{"role":%q,"trustDomain":"d","provider":{"tresor":{"ca":{"secretRef":{"name":"s"}}}}}}`, name, role)
	}
	others := func(context.Context) ([]rotation.Root, error) {
		first, err := rootOf(root("first", rotation.RoleActive))
		second, err2 := rootOf(root("second", rotation.RoleInactive))
		return []rotation.Root{first, second}, errors.Join(err, err2)
	}
	h := handler{Config{Log: testr.New(t), Roots: others}}
	request := func(object, old []byte) *admissionv1.AdmissionRequest {
		return &admissionv1.AdmissionRequest{
			Kind: metav1.GroupVersionKind{Kind: "MeshRootCertificate"}, Namespace: "sys", Object: runtime.RawExtension{Raw: object}, OldObject: runtime.RawExtension{Raw: old},
		}
	}
	response := h.judge(t.Context(), request(root("third", rotation.RoleActive), nil))
	if want := "cannot create MRC sys/third with active role. An MRC with this role already exists in the control plane namespace."; response.Allowed || response.Result.Message != want {
		t.Errorf("a second active root: %+v; want %q", response.Result, want)
	}
	if response := h.judge(t.Context(), request(root("second", rotation.RolePassive), root("second", rotation.RoleInactive))); !response.Allowed {
		t.Errorf("the next step of a rotation is refused: %s", response.Result.Message)
	}
	h.Roots = func(context.Context) ([]rotation.Root, error) {
		return nil, errors.New("the API server does not answer")
	}
	if response := h.judge(t.Context(), request(root("third", rotation.RoleActive), nil)); !response.Allowed {
		t.Error("what cannot be judged is refused; it is judged again before it is followed")
	}
}
