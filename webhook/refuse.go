package webhook

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"

	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/outrigger-mesh/outrigger/internal/annotation"
	"github.com/outrigger-mesh/outrigger/internal/rotation"
)

// judge refuses an object that says something which the mesh would not honour. It
// believes the selectors: that an object comes here at all means that its
// namespace is in the mesh. What it cannot read it lets in, because whatever is
// wrong with an object that got in is reported on it later.
func (h handler) judge(ctx context.Context, r *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
	var faults []string
	var err error
	if r.Kind.Kind == "MeshRootCertificate" {
		faults, err = h.faultsOfRoot(ctx, r)
	} else {
		faults, err = faultsOf(r)
	}
	if err != nil {
		h.Log.Info("object is not understood", "namespace", r.Namespace, "kind", r.Kind.Kind, "name", r.Name, "error", err.Error())
		return allowed()
	}
	if len(faults) == 0 {
		return allowed()
	}
	return errored(http.StatusForbidden, strings.Join(faults, "\n"))
}

// A judged is what judge reads of an object, of whatever kind.
type judged struct {
	metav1.ObjectMeta `json:"metadata"`

	Spec struct {
		Destination struct {
			Namespace string `json:"namespace"`
		} `json:"destination"`
	} `json:"spec"`
}

// faultsOf returns what is wrong with an object and was not already wrong with the
// one that it replaces. An old mistake must not be in the way of another change:
// whoever makes it may be a controller, or know fewer keys than the author.
func faultsOf(r *admissionv1.AdmissionRequest) ([]string, error) {
	check, ok := map[string]func(judged) []error{
		"Namespace":     func(o judged) []error { return annotation.CheckNamespace(o.Annotations) },
		"Service":       func(o judged) []error { return annotation.CheckService(o.Annotations) },
		"Pod":           func(o judged) []error { return annotation.CheckPod(o.Annotations) },
		"TrafficTarget": func(o judged) []error { return checkTarget(r.Namespace, o) },
	}[r.Kind.Kind]
	if !ok {
		return nil, fmt.Errorf("no webhook is for %s", r.Kind.Kind)
	}
	var object, before judged
	if err := json.Unmarshal(r.Object.Raw, &object); err != nil {
		return nil, fmt.Errorf("decode %s: %w", r.Kind.Kind, err)
	}
	var old []string
	if len(r.OldObject.Raw) > 0 {
		if err := json.Unmarshal(r.OldObject.Raw, &before); err != nil {
			return nil, fmt.Errorf("decode old %s: %w", r.Kind.Kind, err)
		}
		for _, err := range check(before) {
			old = append(old, err.Error())
		}
	}
	var faults []string
	for _, err := range check(object) {
		if fault := err.Error(); !slices.Contains(old, fault) {
			faults = append(faults, fmt.Sprintf("%s %s: %s", r.Kind.Kind, judgedName(r, object), fault))
		}
	}
	return faults, nil
}

// faultsOfRoot judges a MeshRootCertificate beside the others, which alone of all that
// admission judges must be asked for.
func (h handler) faultsOfRoot(ctx context.Context, r *admissionv1.AdmissionRequest) ([]string, error) {
	after, err := rootOf(r.Object.Raw)
	if err != nil {
		return nil, err
	}
	after.Name = cmp.Or(after.Name, r.Name)
	var before *rotation.Root
	if len(r.OldObject.Raw) > 0 {
		old, err := rootOf(r.OldObject.Raw)
		if err != nil {
			return nil, err
		}
		before = &old
	}
	others, err := h.Roots(ctx)
	if err != nil {
		return nil, err
	}
	others = slices.DeleteFunc(slices.Clone(others), func(other rotation.Root) bool { return other.Name == after.Name })
	return rotation.JudgeRoot(r.Namespace, before, after, others), nil
}

func rootOf(raw []byte) (rotation.Root, error) {
	var object struct {
		metav1.ObjectMeta `json:"metadata"`

		Spec any `json:"spec"`
	}
	if err := json.Unmarshal(raw, &object); err != nil {
		return rotation.Root{}, fmt.Errorf("decode MeshRootCertificate: %w", err)
	}
	return rotation.ParseRoot(object.Name, object.Spec)
}

// checkTarget wants a TrafficTarget to be where its destination is: whoever owns
// the server decides who may call it.
func checkTarget(namespace string, o judged) []error {
	to := o.Spec.Destination.Namespace
	if to == "" || to == namespace {
		return nil
	}
	return []error{fmt.Errorf("spec.destination.namespace: %q is not allowed; use %q, the namespace of the TrafficTarget, or create it in namespace %q", to, namespace, to)}
}

// judgedName names an object, also one whose name the API server has yet to make
// up.
func judgedName(r *admissionv1.AdmissionRequest, o judged) string {
	name := cmp.Or(r.Name, o.Name)
	if name == "" {
		name = o.GenerateName + "*"
	}
	if r.Namespace == "" || r.Kind.Kind == "Namespace" { // a namespace is said to be in itself
		return name
	}
	return r.Namespace + "/" + name
}
