package controller

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/outrigger-mesh/outrigger/internal/rotation"
)

// rootKind is OSM's MeshRootCertificate.
func rootKind() schema.GroupVersionKind {
	return schema.GroupVersionKind{Group: "config.openservicemesh.io", Version: "v1alpha2", Kind: "MeshRootCertificate"}
}

// Conditions of a MeshRootCertificate. OSM has the types, and never wrote them.
const (
	// rootAccepted: it says something that the mesh can follow.
	rootAccepted = "Accepted"
	// rootValidating: every proxy trusts it.
	rootValidating = "ValidatingRollout"
	// rootIssuing: every workload has a certificate of it.
	rootIssuing = "IssuingRollout"
)

// A RootReader reads the MeshRootCertificates of the system namespace, where the
// cluster has that kind, and writes their status.
type RootReader struct {
	// Client must not be a cache: the kind may come at any time.
	Client client.Client
	Scope  rotation.RootScope

	found    []unstructured.Unstructured
	verdicts []rotation.RootVerdict
}

// Roots returns all of them; none where the cluster has no such kind.
func (r *RootReader) Roots(ctx context.Context) ([]rotation.Root, error) {
	_, roots, err := r.list(ctx)
	return roots, err
}

func (r *RootReader) list(ctx context.Context) ([]unstructured.Unstructured, []rotation.Root, error) {
	list := &unstructured.UnstructuredList{}
	list.SetGroupVersionKind(rootKind())
	err := r.Client.List(ctx, list, client.InNamespace(r.Scope.Namespace))
	if meta.IsNoMatchError(err) || apierrors.IsNotFound(err) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("list MeshRootCertificates in namespace %s: %w", r.Scope.Namespace, err)
	}
	var roots []rotation.Root
	for _, item := range list.Items {
		root, err := rotation.ParseRoot(item.GetName(), item.Object["spec"])
		if err != nil {
			return nil, nil, err
		}
		roots = append(roots, root)
	}
	return list.Items, roots, nil
}

// Goal returns what the roles ask for; nil where nothing does. It and Tell are for
// one caller at a time.
func (r *RootReader) Goal(ctx context.Context, s rotation.State) (*rotation.Goal, error) {
	found, roots, err := r.list(ctx)
	r.found, r.verdicts = nil, nil
	if err != nil || len(roots) == 0 {
		return nil, err
	}
	goal, verdicts := rotation.Roles(roots, s, r.Scope)
	r.found, r.verdicts = found, verdicts
	return goal, nil
}

// Tell writes into the status of each what became of it.
func (r *RootReader) Tell(ctx context.Context, s rotation.State, progress rotation.Progress) error {
	for _, v := range r.verdicts {
		i := slices.IndexFunc(r.found, func(u unstructured.Unstructured) bool { return u.GetName() == v.Root.Name })
		if err := r.write(ctx, r.found[i], rootConditions(v, s, progress)); err != nil {
			return fmt.Errorf("write the status of MeshRootCertificate %s/%s: %w", r.Scope.Namespace, v.Root.Name, err)
		}
	}
	return nil
}

// rootConditions says what became of one.
func rootConditions(v rotation.RootVerdict, s rotation.State, progress rotation.Progress) []metav1.Condition {
	if v.Fault != "" {
		return []metav1.Condition{{Type: rootAccepted, Status: metav1.ConditionFalse, Reason: "Invalid", Message: v.Fault}}
	}
	waits := ""
	if s.Rotation != nil {
		waits = waitsFor(s, progress)
	}
	trusted, isTrusted := s.Find(v.Authority.Name)
	condition := func(kind string, holds, under bool, done, not string) metav1.Condition {
		switch {
		case under:
			return metav1.Condition{Type: kind, Status: metav1.ConditionUnknown, Reason: "UnderWay", Message: waits}
		case holds:
			return metav1.Condition{Type: kind, Status: metav1.ConditionTrue, Reason: "Done", Message: done}
		default:
			return metav1.Condition{Type: kind, Status: metav1.ConditionFalse, Reason: "NotInUse", Message: not}
		}
	}
	named := func(a rotation.Authority) bool { return a.Name == v.Authority.Name }
	inGoal := s.Rotation != nil && slices.ContainsFunc(s.Rotation.Goal.All(), named)
	leaves := s.Rotation != nil && !inGoal && (isTrusted || slices.ContainsFunc(s.Rotation.Previous.All(), named))
	signs := s.Signing == v.Authority.Name
	toSign := s.Rotation != nil && s.Rotation.Goal.Sign.Name == v.Authority.Name
	return []metav1.Condition{
		{Type: rootAccepted, Status: metav1.ConditionTrue, Reason: "Accepted", Message: "it is authority " + v.Authority.Name + " of the mesh"},
		condition(rootValidating, isTrusted, leaves || inGoal && (!isTrusted || trusted.Since > 0 && !signs), "every proxy trusts it", "no proxy trusts it"),
		condition(rootIssuing, signs, s.Rotation != nil && (toSign && s.Serving != v.Authority.Name || signs && !toSign), "it signs every certificate", "it signs no certificate"),
	}
}

// waitsFor says what a rotation waits for, and whom.
func waitsFor(s rotation.State, progress rotation.Progress) string {
	if s.Rotation.Problem != "" {
		return s.Rotation.Problem
	}
	text := fmt.Sprintf("step %s: %d of %d proxies %s", s.Rotation.Step, progress.Done, progress.Total, progress.What)
	for _, behind := range progress.Behind {
		text += fmt.Sprintf("; waits for %s: %s", behind.Who, behind.Why)
	}
	return text
}

// write writes conditions that differ from those that are there.
func (r *RootReader) write(ctx context.Context, u unstructured.Unstructured, want []metav1.Condition) error {
	had, _, err := unstructured.NestedSlice(u.Object, "status", "conditions")
	if err != nil {
		had = nil // whatever it is, it is not ours
	}
	var before, after []metav1.Condition
	if text, err := json.Marshal(had); err == nil {
		_ = json.Unmarshal(text, &before) // conditions of another form are replaced
	}
	for _, c := range before {
		if slices.ContainsFunc(want, func(w metav1.Condition) bool { return w.Type == c.Type }) {
			after = append(after, c)
		}
	}
	for _, c := range want {
		c.ObservedGeneration = u.GetGeneration()
		meta.SetStatusCondition(&after, c)
	}
	if equality.Semantic.DeepEqual(before, after) {
		return nil
	}
	patch, err := json.Marshal(map[string]any{"status": map[string]any{"conditions": after}})
	if err != nil {
		return err
	}
	err = r.Client.Status().Patch(ctx, &u, client.RawPatch("application/merge-patch+json", patch))
	return client.IgnoreNotFound(err)
}
