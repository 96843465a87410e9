package webhook

import (
	"fmt"
	"testing"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/version"
	"k8s.io/apiserver/pkg/admission"
	admissioncel "k8s.io/apiserver/pkg/admission/plugin/cel"
	accessor "k8s.io/apiserver/pkg/admission/plugin/webhook"
	"k8s.io/apiserver/pkg/cel/environment"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/outrigger-mesh/outrigger/injector"
	"github.com/outrigger-mesh/outrigger/internal/annotation"
)

// namespaces and pods are everything that a decision looks at; each namespace is
// tried with each pod, here and against a real API server.
func namespaces() map[string]injector.Namespace {
	list := map[string]injector.Namespace{
		"plain":             {},
		"enabled":           {Labels: map[string]string{annotation.Inject: "enabled"}},
		"yes":               {Labels: map[string]string{annotation.Inject: "YES"}},
		"disabled":          {Labels: map[string]string{annotation.Inject: "disabled"}},
		"no":                {Labels: map[string]string{annotation.Inject: "no"}},
		"false":             {Labels: map[string]string{annotation.Inject: "false"}},
		"disabled-in-caps":  {Labels: map[string]string{annotation.Inject: "Disabled"}},
		"typing-error":      {Labels: map[string]string{annotation.Inject: "on"}},
		"empty":             {Labels: map[string]string{annotation.Inject: ""}},
		"ignored":           {Labels: map[string]string{annotation.Inject: "enabled", annotation.OSMIgnore: "true"}},
		"osm":               {Labels: map[string]string{annotation.OSMMonitoredBy: "osm"}},
		"osm-enabled":       {Labels: map[string]string{annotation.OSMMonitoredBy: "osm"}, Annotations: map[string]string{annotation.OSMInject: "Enabled"}},
		"osm-disabled":      {Labels: map[string]string{annotation.OSMMonitoredBy: "osm"}, Annotations: map[string]string{annotation.OSMInject: "disabled"}},
		"osm-typing-error":  {Labels: map[string]string{annotation.OSMMonitoredBy: "osm"}, Annotations: map[string]string{annotation.OSMInject: "on"}},
		"osm-ignored":       {Labels: map[string]string{annotation.OSMMonitoredBy: "osm", annotation.OSMIgnore: ""}, Annotations: map[string]string{annotation.OSMInject: "enabled"}},
		"osm-control-plane": {Labels: map[string]string{annotation.OSMMonitoredBy: "osm", annotation.ControlPlane: "x"}, Annotations: map[string]string{annotation.OSMInject: "enabled"}},
		"osm-and-ours":      {Labels: map[string]string{annotation.OSMMonitoredBy: "osm", annotation.Inject: "disabled"}, Annotations: map[string]string{annotation.OSMInject: "enabled"}},
		"another-osm":       {Labels: map[string]string{annotation.OSMMonitoredBy: "prod"}, Annotations: map[string]string{annotation.OSMInject: "enabled"}},
		"istio":             {Labels: map[string]string{annotation.Inject: "enabled", "istio-injection": "enabled"}},
		"kube-system":       {Labels: map[string]string{annotation.Inject: "enabled"}},
		"outrigger-system":  {Labels: map[string]string{annotation.Inject: "enabled"}},
	}
	for name, ns := range list {
		ns.Name = name
		list[name] = ns
	}
	return list
}

func pods() map[string]*corev1.Pod {
	pod := func(labels, annotations map[string]string, change ...func(*corev1.PodSpec)) *corev1.Pod {
		p := &corev1.Pod{
			TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
			ObjectMeta: metav1.ObjectMeta{GenerateName: "p-", Labels: labels, Annotations: annotations},
			Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "example.com/app:1"}}},
		}
		for _, c := range change {
			c(&p.Spec)
		}
		return p
	}
	hostNetwork := func(s *corev1.PodSpec) { s.HostNetwork = true }
	word := func(v string) map[string]string { return map[string]string{annotation.Inject: v} }
	osm := func(v string) map[string]string { return map[string]string{annotation.OSMInject: v} }
	return map[string]*corev1.Pod{
		"silent":                     pod(nil, nil),
		"other-keys":                 pod(map[string]string{"app": "web"}, map[string]string{"example.com/x": "disabled"}),
		"label-enabled":              pod(word("enabled"), nil),
		"label-true-in-caps":         pod(word("TRUE"), nil),
		"label-disabled":             pod(word("disabled"), nil),
		"label-no-in-caps":           pod(word("No"), nil),
		"label-empty":                pod(word(""), word("enabled")),
		"label-typing-error":         pod(word("on"), nil),
		"annotation-enabled":         pod(nil, word("yes")),
		"annotation-disabled":        pod(nil, word("false")),
		"annotation-almost-disabled": pod(nil, word("disabled ")),
		"label-over-annotation":      pod(word("enabled"), word("disabled")),
		"osm-enabled":                pod(nil, osm("enabled")),
		"osm-disabled":               pod(nil, osm("DISABLED")),
		"osm-typing-error":           pod(nil, osm("x")),
		"ours-over-osm":              pod(nil, map[string]string{annotation.Inject: "disabled", annotation.OSMInject: "enabled"}),
		"host-network":               pod(nil, nil, hostNetwork),
		"host-network-asked":         pod(word("enabled"), nil, hostNetwork),
		"host-network-disabled":      pod(word("disabled"), nil, hostNetwork),
		"mirror":                     pod(nil, map[string]string{corev1.MirrorPodAnnotationKey: "x"}),
		"windows":                    pod(nil, nil, func(s *corev1.PodSpec) { s.OS = &corev1.PodOS{Name: corev1.Windows} }),
		"istio":                      pod(map[string]string{"sidecar.istio.io/inject": "true"}, nil),
	}
}

// TestAgreement runs every namespace with every pod through the API server's own
// compiler and evaluator, and through Decide. At most one webhook may match; it
// must be the one that MatchNamespace foretells; and where none matches, Decide
// would have left the pod alone. Expressions are compiled for the oldest
// Kubernetes that is supported, and for the newest.
func TestAgreement(t *testing.T) {
	environments := map[string]*environment.EnvSet{
		"1.29":   environment.MustBaseEnvSet(version.MajorMinor(1, 29)),
		"newest": environment.MustBaseEnvSet(environment.DefaultCompatibilityVersion()),
	}
	s := settings()
	for name, env := range environments {
		t.Run(name, func(t *testing.T) {
			match := matchers(t, env)
			called := 0
			for nsName, ns := range namespaces() {
				for podName, pod := range pods() {
					paths := match(ns, pod)
					foretold := injector.MatchNamespace(ns, s)
					verdict := injector.Decide(injector.Request{Namespace: ns, Match: foretold, Pod: pod}, s)
					where := fmt.Sprintf("namespace %s, pod %s: %s %s", nsName, podName, verdict.Outcome, verdict.Reason)
					if len(paths) > 1 {
						t.Errorf("%s: webhooks %v match; the selectors must exclude each other", where, paths)
					}
					if len(paths) == 0 && verdict.Outcome != injector.Skipped {
						t.Errorf("%s: no webhook matches, so it would not happen", where)
					}
					// Outside the mesh the validating webhook tells.
					if len(paths) == 0 && verdict.Surprising && foretold != injector.NoMatch {
						t.Errorf("%s: no webhook matches, so nobody would be told", where)
					}
					for _, path := range paths {
						called++
						if verdict.Reason == injector.HostNetwork && !verdict.Surprising {
							t.Errorf("%s: webhook %s matches, so an outage would block the pod", where, path)
						}
						if want := pathOf(foretold); path != want {
							t.Errorf("%s: webhook %s matches, want %s", where, path, want)
						}
						switch verdict.Reason {
						case injector.SystemNamespace, injector.PodDisabled, injector.OutsideMesh, injector.MirrorPod:
							t.Errorf("%s: webhook %s matches, so an outage would block the pod", where, path)
						}
					}
				}
			}
			if called == 0 {
				t.Error("no webhook matched anything, so nothing was compared")
			}
		})
	}
}

func pathOf(m injector.Match) string {
	return map[injector.Match]string{injector.MatchOn: PathOn, injector.MatchAsk: PathAsk, injector.MatchOSM: PathOSM}[m]
}

// matchers returns a function that tells which webhooks the API server would call.
func matchers(t *testing.T, env *environment.EnvSet) func(injector.Namespace, *corev1.Pod) []string {
	t.Helper()
	mutating, _ := Configurations(options())
	compiler := admissioncel.NewConditionCompiler(env)
	var accessors []accessor.WebhookAccessor
	for i, w := range mutating.Webhooks {
		accessors = append(accessors, accessor.NewMutatingWebhookAccessor(w.Name, mutating.Name, &mutating.Webhooks[i]))
	}
	return func(ns injector.Namespace, pod *corev1.Pod) []string {
		var paths []string
		for i, a := range accessors {
			w := mutating.Webhooks[i]
			namespaceSelector, err := a.GetParsedNamespaceSelector()
			if err != nil {
				t.Fatalf("webhook %s: selector: %v", w.Name, err)
			}
			if !namespaceSelector.Matches(withName(ns)) {
				continue
			}
			result := a.GetCompiledMatcher(compiler).Match(t.Context(), attributes(t, "pods", pod), nil, nil)
			if result.Error != nil {
				t.Fatalf("webhook %s, namespace %s: %v", w.Name, ns.Name, result.Error)
			}
			if result.Matches {
				paths = append(paths, (*w.ClientConfig.URL)[len(options().URL):])
			}
		}
		return paths
	}
}

func withName(ns injector.Namespace) labels.Set {
	set := labels.Set{corev1.LabelMetadataName: ns.Name}
	for k, v := range ns.Labels {
		set[k] = v
	}
	return set
}

func attributes(t *testing.T, resource string, object runtime.Object) *admission.VersionedAttributes {
	t.Helper()
	return replacing(t, resource, object, nil)
}

// replacing returns what the API server knows of an update, or of a creation where
// old is nil.
func replacing(t *testing.T, resource string, object, old runtime.Object) *admission.VersionedAttributes {
	t.Helper()
	operation := admission.Create
	if old != nil {
		operation = admission.Update
	}
	kind := object.GetObjectKind().GroupVersionKind()
	gvr := schema.GroupVersionResource{Group: kind.Group, Version: kind.Version, Resource: resource}
	record := admission.NewAttributesRecord(object, old, kind, "ns", "", gvr, "", operation, nil, false, nil)
	versioned, err := admission.NewVersionedAttributes(record, kind, admission.NewObjectInterfacesFromScheme(scheme.Scheme))
	if err != nil {
		t.Fatal(err)
	}
	return versioned
}

func options() Options {
	return Options{Name: "outrigger-test", SystemNamespace: "outrigger-system", URL: "https://127.0.0.1:1", OSMMesh: "osm"}
}

// TestValidatingConditions wants warnings to be asked for about whoever mentions
// the mesh, and nobody else.
func TestValidatingConditions(t *testing.T) {
	template := func(labels, annotations map[string]string) corev1.PodTemplateSpec {
		return corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels, Annotations: annotations}}
	}
	word := map[string]string{annotation.Inject: "enabled"}
	cases := map[string]struct {
		reason string
		labels map[string]string
		notes  map[string]string
		owned  bool
		want   bool
	}{
		"says nothing":    {reason: "the webhook is on the way of every workload in the cluster", notes: map[string]string{"example.com/x": "y"}},
		"label":           {reason: "it asks", labels: word, want: true},
		"annotation":      {reason: "it asks", notes: word, want: true},
		"osm":             {reason: "it asks", notes: map[string]string{annotation.OSMInject: "enabled"}, want: true},
		"proxy settings":  {reason: "a typing error in them would refuse its pods later", notes: map[string]string{annotation.ProxyCPU: "x"}, want: true},
		"from controller": {reason: "a controller does not read warnings", labels: word, owned: true},
	}
	_, validating := Configurations(options())
	compiler := admissioncel.NewConditionCompiler(environment.MustBaseEnvSet(version.MajorMinor(1, 29)))
	for name, tc := range cases {
		for i, object := range workloads(template(tc.labels, tc.notes), tc.owned) {
			w := &validating.Webhooks[min(i, 2)]
			t.Run(name+"/"+w.Name, func(t *testing.T) {
				a := accessor.NewValidatingWebhookAccessor(w.Name, validating.Name, w)
				result := a.GetCompiledMatcher(compiler).Match(t.Context(), attributes(t, w.Rules[0].Resources[0], object), nil, nil)
				if result.Error != nil || result.Matches != tc.want {
					t.Errorf("%s: matches %v (%v), want %v", tc.reason, result.Matches, result.Error, tc.want)
				}
			})
		}
	}
}

// TestConfigurationsAreSafe checks what must hold for each webhook.
func TestConfigurationsAreSafe(t *testing.T) {
	mutating, validating := Configurations(Options{Name: "m", SystemNamespace: "mesh", Service: "hook", OSMMesh: ""})
	if len(mutating.Webhooks) != 2 {
		t.Errorf("%d mutating webhooks without OSM, want 2", len(mutating.Webhooks))
	}
	for _, w := range mutating.Webhooks {
		if *w.FailurePolicy != admissionregistrationv1.Fail || *w.SideEffects != admissionregistrationv1.SideEffectClassNone || *w.ReinvocationPolicy != admissionregistrationv1.IfNeededReinvocationPolicy {
			t.Errorf("webhook %s is not Fail, None, IfNeeded", w.Name)
		}
		if w.ClientConfig.Service == nil || w.ClientConfig.Service.Name != "hook" || w.ClientConfig.Service.Namespace != "mesh" {
			t.Errorf("webhook %s: client %+v, want service mesh/hook", w.Name, w.ClientConfig)
		}
	}
	for _, w := range validating.Webhooks {
		if *w.FailurePolicy != admissionregistrationv1.Ignore {
			t.Errorf("webhook %s warns, or refuses what would only be ignored, so it must never block", w.Name)
		}
	}
}
