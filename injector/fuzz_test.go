package injector

import (
	"encoding/json"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
)

// FuzzInject gives pods that nobody has validated yet, as admission does. Whatever
// they hold, nothing may panic or change; a patch must apply; the patched pod must
// be a pod, need no further patch, and be without a sidecar after Remove.
func FuzzInject(f *testing.F) {
	files, err := filepath.Glob("testdata/*/pod.yaml")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		tc := load(f, filepath.Dir(file))
		f.Add(tc.raw, tc.namespace.Labels["outrigger.dev/inject"], tc.namespace.Annotations["openservicemesh.io/sidecar-injection"], int(MatchNamespace(tc.namespace, tc.settings)))
	}
	s := settings()
	f.Fuzz(func(t *testing.T, raw []byte, label, annotation string, match int) {
		var pod corev1.Pod
		if json.Unmarshal(raw, &pod) != nil {
			return
		}
		pod.Name = "p" // the API server always sends metadata
		r := Request{
			Namespace: Namespace{Name: "ns", Labels: map[string]string{"outrigger.dev/inject": label}, Annotations: map[string]string{"openservicemesh.io/sidecar-injection": annotation}},
			Match:     Match(match), Pod: &pod,
		}
		before := pod.DeepCopy()
		verdict, ops := Inject(r, s)
		if diff := cmp.Diff(before, &pod); diff != "" {
			t.Fatalf("Inject changed its input:\n%s", diff)
		}
		if verdict.Reason == "" || verdict.Message == "" || verdict.Outcome != Injected && len(ops) > 0 {
			t.Fatalf("verdict %+v with %d operations", verdict, len(ops))
		}
		if verdict.Outcome != Injected || len(pod.Spec.Containers) == 0 {
			return
		}
		text, err := json.Marshal(&pod)
		if err != nil {
			return
		}
		patched := decode(t, apply(t, text, encode(t, ops)))
		r.Pod = patched
		if verdict, again := Inject(r, s); verdict.Outcome != Injected || len(again) > 0 {
			t.Fatalf("injected again: %+v %s\nfirst: %s\nof %s", verdict, encode(t, again), encode(t, ops), text)
		}
		text, err = json.Marshal(patched)
		if err != nil {
			t.Fatal(err)
		}
		if removed := decode(t, apply(t, text, encode(t, Remove(patched)))); find(removed).present() {
			t.Fatalf("the sidecar is still there after Remove from %s", text)
		}
	})
}
