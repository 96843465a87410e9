package controller

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-logr/logr"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/flowcontrol"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/outrigger-mesh/outrigger/internal/api"
	"github.com/outrigger-mesh/outrigger/internal/api/status"
	"github.com/outrigger-mesh/outrigger/internal/ingest"
)

const (
	// perSecond and atOnce bound what writing statuses asks of the API server.
	perSecond, atOnce = 20, 20
	// maxMessage is what a condition's message may hold.
	maxMessage = 32 << 10
)

// A StatusWriter writes the condition Accepted on the objects of policy in the mesh's
// namespaces: whether each is honoured as it is written. It writes what has changed
// and nothing else, in the elected replica only. All fields are required.
type StatusWriter struct {
	// Cache has what was read, and Client writes.
	Cache  client.Reader
	Client client.Client
	// Members lists the namespaces of the mesh.
	Members func(context.Context) ([]string, error)
	// Served are the kinds; those that have no status in this cluster are left out.
	Served []api.Served
	Log    logr.Logger

	newest chan []ingest.Problem
	limit  flowcontrol.RateLimiter
	// written has conditions that the cache does not show yet.
	written map[types.UID]metav1.Condition
}

// NewStatusWriter returns w with what it needs inside.
func NewStatusWriter(w StatusWriter) *StatusWriter {
	w.newest = make(chan []ingest.Problem, 1)
	w.limit = flowcontrol.NewTokenBucketRateLimiter(perSecond, atOnce)
	w.written = map[types.UID]metav1.Condition{}
	return &w
}

// NeedLeaderElection is true: one replica writes.
func (w *StatusWriter) NeedLeaderElection() bool { return true }

// Problems takes all problems of the newest snapshot. It never blocks.
func (w *StatusWriter) Problems(problems []ingest.Problem) { keepNewest(w.newest, problems) }

// Start writes until ctx ends. What could not be written is tried again.
func (w *StatusWriter) Start(ctx context.Context) error {
	var problems []ingest.Problem
	retry := time.NewTimer(again)
	retry.Stop()
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case problems = <-w.newest:
		case <-retry.C:
		}
		if err := w.write(ctx, problems); err != nil && ctx.Err() == nil {
			w.Log.Error(err, "statuses not written everywhere")
			retry.Reset(again)
		}
	}
}

// A judged is an object of policy with its conditions.
type judged struct {
	client.Object
	kind       string
	conditions []metav1.Condition
}

// write makes all statuses what they should be. It breaks off when there are newer
// problems.
func (w *StatusWriter) write(ctx context.Context, problems []ingest.Problem) error {
	members, err := w.Members(ctx)
	if err != nil {
		return err
	}
	objs, err := Objects(ctx, w.Cache)
	if err != nil {
		return err
	}
	found := map[ingest.ObjectRef][]ingest.Problem{}
	for _, p := range problems {
		of := ingest.ObjectRef{Kind: p.Object.Kind, Namespace: p.Object.Namespace, Name: p.Object.Name}
		found[of] = append(found[of], p)
	}
	seen := make(map[types.UID]bool)
	for _, o := range judgedOf(objs) {
		kind, ok := w.kind(o.kind)
		if !ok || !slices.Contains(members, o.GetNamespace()) {
			continue
		}
		if len(w.newest) > 0 {
			return nil
		}
		seen[o.GetUID()] = true
		want := condition(o, found[ingest.ObjectRef{Kind: o.kind, Namespace: o.GetNamespace(), Name: o.GetName()}])
		if err := w.writeOne(ctx, kind, o, want); err != nil {
			return fmt.Errorf("write the status of %s %s/%s: %w", o.kind, o.GetNamespace(), o.GetName(), err)
		}
	}
	for uid := range w.written {
		if !seen[uid] {
			delete(w.written, uid)
		}
	}
	return nil
}

// kind returns in which version an object's status is written, false if it has none.
func (w *StatusWriter) kind(name string) (schema.GroupVersionKind, bool) {
	i := slices.IndexFunc(w.Served, func(k api.Served) bool { return k.Name == name })
	if i < 0 || !w.Served[i].Status {
		return schema.GroupVersionKind{}, false
	}
	return w.Served[i].GroupVersionKind(), true
}

func (w *StatusWriter) writeOne(ctx context.Context, kind schema.GroupVersionKind, o judged, want metav1.Condition) error {
	have := current(o.conditions)
	if same(have, want) {
		delete(w.written, o.GetUID())
		return nil
	}
	if last, ok := w.written[o.GetUID()]; ok {
		if have = last; same(last, want) {
			return nil
		}
	}
	want.LastTransitionTime = metav1.Now()
	if have.Status == want.Status {
		want.LastTransitionTime = have.LastTransitionTime
	}
	if err := w.limit.Wait(ctx); err != nil {
		return err
	}
	written, err := runtime.DefaultUnstructuredConverter.ToUnstructured(&want)
	if err != nil {
		return err
	}
	out := &unstructured.Unstructured{Object: map[string]any{"status": map[string]any{"conditions": []any{written}}}}
	out.SetGroupVersionKind(kind)
	out.SetNamespace(o.GetNamespace())
	out.SetName(o.GetName())
	out.SetUID(o.GetUID())
	err = w.Client.Status().Apply(ctx, client.ApplyConfigurationFromUnstructured(out), client.FieldOwner("outriggerd"), client.ForceOwnership)
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil // it is gone, or another of its name is there
	}
	if err == nil {
		w.written[o.GetUID()] = want
	}
	return err
}

// judgedOf returns the objects of policy.
func judgedOf(objs ingest.Objects) []judged {
	var out []judged
	for _, o := range objs.TrafficTargets {
		out = append(out, judged{o, "TrafficTarget", o.Status.Conditions})
	}
	for _, o := range objs.HTTPRouteGroups {
		out = append(out, judged{o, "HTTPRouteGroup", o.Status.Conditions})
	}
	for _, o := range objs.TCPRoutes {
		out = append(out, judged{o, "TCPRoute", o.Status.Conditions})
	}
	for _, o := range objs.TrafficSplits {
		out = append(out, judged{o, "TrafficSplit", o.Status.Conditions})
	}
	return out
}

// condition says what problems say about an object.
func condition(o client.Object, problems []ingest.Problem) metav1.Condition {
	c := metav1.Condition{
		Type: status.Accepted, Status: metav1.ConditionTrue, ObservedGeneration: o.GetGeneration(),
		Reason: status.Reason, Message: "it is honoured as it is written",
	}
	if len(problems) == 0 {
		return c
	}
	var said []string
	for _, p := range problems {
		said = append(said, p.Message)
	}
	c.Status, c.Reason, c.Message = metav1.ConditionFalse, string(problems[0].Reason), strings.Join(said, "; ")
	for len(c.Message) > maxMessage || !utf8.ValidString(c.Message) {
		c.Message = strings.ToValidUTF8(c.Message[:min(len(c.Message), maxMessage)], "")
	}
	return c
}

func current(conditions []metav1.Condition) metav1.Condition {
	for _, c := range conditions {
		if c.Type == status.Accepted {
			return c
		}
	}
	return metav1.Condition{}
}

// same reports whether two conditions differ at most in when they began.
func same(a, b metav1.Condition) bool {
	a.LastTransitionTime, b.LastTransitionTime = metav1.Time{}, metav1.Time{}
	return a == b
}
