package injector

import (
	"encoding/json"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// TestTrustDomains reads what a pod was made with from the pod.
func TestTrustDomains(t *testing.T) {
	plain := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "x"}}}}
	if got := TrustDomains(plain); got != nil {
		t.Errorf("a pod without a proxy knows %q", got)
	}
	s := settings()
	for _, also := range [][]string{nil, {"mesh.new"}} {
		s.AlsoTrusted = also
		raw, err := json.Marshal(plain)
		if err != nil {
			t.Fatal(err)
		}
		_, ops := Inject(Request{Namespace: Namespace{Name: "shop", Labels: map[string]string{"outrigger.dev/inject": "enabled"}}, Match: MatchOn, Pod: plain}, s)
		pod := decode(t, apply(t, raw, encode(t, ops)))
		if got, want := TrustDomains(pod), append([]string{s.TrustDomain}, also...); !slices.Equal(got, want) {
			t.Errorf("it knows %q, want %q", got, want)
		}
	}
}
