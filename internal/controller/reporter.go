package controller

import (
	"context"
	"fmt"
	"strings"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/outrigger-mesh/outrigger/injector"
	"github.com/outrigger-mesh/outrigger/internal/ingest"
	"github.com/outrigger-mesh/outrigger/internal/sidecar"
)

// A Reporter tells users, by Events, what happened to their objects: policy that
// cannot be honoured, on the object itself, and pods that got no sidecar although
// somebody asked for one, on the pod's owner. It runs in the elected replica
// only, so that an Event is written once.
type Reporter struct {
	// Cache has the pods and namespaces; Owners is asked for what owns a pod.
	Cache    cache.Cache
	Owners   client.Reader
	Events   events.EventRecorder
	Injector injector.Settings
	Log      logr.Logger

	problems chan []ingest.Problem
}

// NewReporter returns r with what it needs inside.
func NewReporter(r Reporter) *Reporter {
	r.problems = make(chan []ingest.Problem, 1)
	return &r
}

// NeedLeaderElection is true: one replica writes.
func (r *Reporter) NeedLeaderElection() bool { return true }

// Problems takes all problems of the newest snapshot. It never blocks: where the
// Reporter does not run, or is behind, only the newest are kept.
func (r *Reporter) Problems(problems []ingest.Problem) { keepNewest(r.problems, problems) }

// keepNewest puts problems into a channel that holds one list, in place of those that
// nobody took.
func keepNewest(into chan []ingest.Problem, problems []ingest.Problem) {
	for {
		select {
		case into <- problems:
			return
		default:
		}
		select {
		case <-into:
		default:
		}
	}
}

// Start reports until ctx ends.
func (r *Reporter) Start(ctx context.Context) error {
	informer, err := r.Cache.GetInformer(ctx, &corev1.Pod{})
	if err != nil {
		return fmt.Errorf("watch pods: %w", err)
	}
	pods := make(chan *corev1.Pod, 64)
	registration, err := informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{AddFunc: func(object any) {
		if pod, ok := object.(*corev1.Pod); ok {
			select {
			case pods <- pod:
			case <-ctx.Done():
			}
		}
	}})
	if err != nil {
		return fmt.Errorf("watch pods: %w", err)
	}
	defer func() { _ = informer.RemoveEventHandler(registration) }()

	known := map[ingest.Problem]bool{}
	surprised := told{}
	for {
		select {
		case <-ctx.Done():
			return nil
		case problems := <-r.problems:
			known = r.reportProblems(known, problems)
		case pod := <-pods:
			r.reportPod(ctx, pod, surprised)
		}
	}
}

// reportProblems writes an Event for each problem that is new, and returns all of
// them.
func (r *Reporter) reportProblems(known map[ingest.Problem]bool, problems []ingest.Problem) map[ingest.Problem]bool {
	now := make(map[ingest.Problem]bool, len(problems))
	for _, problem := range problems {
		now[problem] = true
		if !known[problem] {
			r.Events.Eventf(reference(problem.Object), nil, corev1.EventTypeWarning, string(problem.Reason), "Honour", "%s", problem.Message)
		}
	}
	return now
}

func reference(o ingest.ObjectRef) *corev1.ObjectReference {
	return &corev1.ObjectReference{APIVersion: o.APIVersion, Kind: o.Kind, Namespace: o.Namespace, Name: o.Name, UID: o.UID}
}

// reportPod writes an Event on the owner of a pod that got no sidecar to
// somebody's surprise, once for each owner and reason.
func (r *Reporter) reportPod(ctx context.Context, pod *corev1.Pod, told told) {
	if pod.DeletionTimestamp != nil || pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
		return // too late to do something about it
	}
	var ns corev1.Namespace
	if r.Cache.Get(ctx, client.ObjectKey{Name: pod.Namespace}, &ns) != nil {
		return // it is being deleted
	}
	namespace := injector.Namespace{Name: ns.Name, Labels: ns.Labels, Annotations: ns.Annotations}
	verdict := injector.Decide(injector.Request{Namespace: namespace, Match: injector.MatchNamespace(namespace, r.Injector), Pod: pod}, r.Injector)
	bypassed := verdict.Outcome == injector.Injected && !sidecar.In(pod)
	if !verdict.Surprising && !bypassed {
		return
	}
	owner, err := r.owner(ctx, pod)
	if err != nil {
		r.Log.V(1).Info("owner of an uninjected pod not found", "pod", client.ObjectKeyFromObject(pod), "reason", err.Error())
		return
	}
	if !told.isNews(owner.UID, verdict.Reason) {
		return
	}
	message := verdict.Message
	if bypassed {
		message = "its pods should have a sidecar but were created before the mesh, or past its webhook; restart them"
	}
	r.Events.Eventf(owner, nil, corev1.EventTypeWarning, "NotInjected", "Inject", "no sidecar (%s): %s", verdict.Reason, message)
}

// told is what the owners of pods were told last.
type told map[types.UID]injector.Reason

// maxTold bounds it, as every Job of a CronJob is an owner of its own. To tell
// some again is better than to grow for ever.
const maxTold = 10_000

// isNews reports whether an owner was not yet told of a reason, and notes that it
// is now.
func (t told) isNews(owner types.UID, reason injector.Reason) bool {
	if t[owner] == reason {
		return false
	}
	if len(t) >= maxTold {
		clear(t)
	}
	t[owner] = reason
	return true
}

// owner returns what a user would look at for the pod: the Deployment of its
// ReplicaSet, its controller, or the pod itself.
func (r *Reporter) owner(ctx context.Context, pod *corev1.Pod) (*corev1.ObjectReference, error) {
	ref := metav1.GetControllerOf(pod)
	if ref == nil {
		return &corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID}, nil
	}
	if ref.Kind == "ReplicaSet" && strings.HasPrefix(ref.APIVersion, "apps/") {
		set := &metav1.PartialObjectMetadata{}
		set.APIVersion, set.Kind = ref.APIVersion, ref.Kind
		if err := r.Owners.Get(ctx, client.ObjectKey{Namespace: pod.Namespace, Name: ref.Name}, set); err != nil {
			return nil, fmt.Errorf("read ReplicaSet %s/%s: %w", pod.Namespace, ref.Name, err)
		}
		if above := metav1.GetControllerOf(set); above != nil {
			ref = above
		}
	}
	return &corev1.ObjectReference{APIVersion: ref.APIVersion, Kind: ref.Kind, Namespace: pod.Namespace, Name: ref.Name, UID: ref.UID}, nil
}
