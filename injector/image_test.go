package injector

import (
	"encoding/json"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// TestNamespaceHasNoSayInTheImage holds that whoever may annotate a namespace, but
// not create pods in it, cannot choose the program that has its pods' identities.
func TestNamespaceHasNoSayInTheImage(t *testing.T) {
	pod := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "x"}}}}
	ns := Namespace{Name: "shop", Labels: map[string]string{"outrigger.dev/inject": "enabled"}, Annotations: map[string]string{
		"outrigger.dev/proxy-image": "evil.example.com/proxy", "outrigger.dev/identity": "files:evil", "outrigger.dev/outbound-port-exclusion-list": "443",
	}}
	verdict, ops := Inject(Request{Namespace: ns, Match: MatchOn, Pod: pod}, settings())
	text, err := json.Marshal(ops)
	if err != nil || verdict.Outcome != Injected {
		t.Fatalf("%v %v", verdict, err)
	}
	if !strings.Contains(string(text), settings().ProxyImage) {
		t.Errorf("the sidecar is not the mesh's:\n%s", text)
	}
	for _, word := range []string{"evil", "443"} {
		if strings.Contains(string(text), word) {
			t.Errorf("the namespace's word %q reached the pod:\n%s", word, text)
		}
	}
}
