package controller

import (
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	accessv1alpha3 "github.com/outrigger-mesh/outrigger/internal/api/access/v1alpha3"
	"github.com/outrigger-mesh/outrigger/internal/ingest"
)

func TestCondition(t *testing.T) {
	o := &unstructured.Unstructured{}
	o.SetGeneration(7)
	want := metav1.Condition{Type: "Accepted", Status: "True", ObservedGeneration: 7, Reason: "Accepted", Message: "it is honoured as it is written"}
	if got := condition(o, nil); got != want {
		t.Errorf("without problems: %+v", got)
	}
	problems := []ingest.Problem{{Reason: ingest.NoPorts, Message: "one"}, {Reason: ingest.NothingAllowed, Message: "two"}}
	want = metav1.Condition{Type: "Accepted", Status: "False", ObservedGeneration: 7, Reason: "NoPorts", Message: "one; two"}
	if got := condition(o, problems); got != want {
		t.Errorf("with problems: %+v", got)
	}
	problems[0].Message = strings.Repeat("é", maxMessage)
	if got := condition(o, problems); len(got.Message) > maxMessage || !strings.HasSuffix(got.Message, "é") {
		t.Errorf("a message of %d bytes", len(got.Message))
	}
}

// TestOnlyStatus wants our own writes to lead to no new snapshot, and every other
// change to lead to one.
func TestOnlyStatus(t *testing.T) {
	o := &accessv1alpha3.TrafficTarget{ObjectMeta: metav1.ObjectMeta{UID: "a", Generation: 2, Annotations: map[string]string{"a": "b"}}}
	change := func(f func(*accessv1alpha3.TrafficTarget)) *accessv1alpha3.TrafficTarget {
		out := o.DeepCopy()
		f(out)
		return out
	}
	if !onlyStatus(o, change(func(o *accessv1alpha3.TrafficTarget) {
		o.Status.Conditions = []metav1.Condition{{}}
		o.ResourceVersion = "9"
	})) {
		t.Error("a status counts as a change")
	}
	for name, now := range map[string]any{
		"spec":       change(func(o *accessv1alpha3.TrafficTarget) { o.Generation++ }),
		"annotation": change(func(o *accessv1alpha3.TrafficTarget) { o.Annotations["a"] = "c" }),
		"another":    change(func(o *accessv1alpha3.TrafficTarget) { o.UID = "b" }),
		"a pod":      &unstructured.Unstructured{},
	} {
		if onlyStatus(o, now) {
			t.Errorf("%s: counts as a status", name)
		}
	}
}
