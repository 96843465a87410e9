//go:build integration

package controller

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr/testr"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/outrigger-mesh/outrigger/e2e/cluster/local"
	"github.com/outrigger-mesh/outrigger/injector"
	"github.com/outrigger-mesh/outrigger/internal/ingest"
)

// world is a real API server with a Reporter.
type world struct {
	*testing.T
	admin    client.Client
	reporter *Reporter
}

func newWorld(t *testing.T) world {
	server, err := local.StartAPIServer(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Stop)
	admin, err := client.New(server.Config, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	set, err := kubernetes.NewForConfig(server.Config)
	if err != nil {
		t.Fatal(err)
	}
	informers, err := cache.New(server.Config, cache.Options{DefaultTransform: Trim})
	if err != nil {
		t.Fatal(err)
	}
	broadcaster := events.NewBroadcaster(&events.EventSinkImpl{Interface: set.EventsV1()})
	if err := broadcaster.StartRecordingToSinkWithContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	w := world{T: t, admin: admin, reporter: NewReporter(Reporter{
		Cache: informers, Owners: admin, Events: broadcaster.NewRecorder(admin.Scheme(), "outriggerd"),
		Injector: injector.Settings{SystemNamespace: "outrigger-system", OSMMesh: "osm"}, Log: testr.New(t),
	})}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	go func() { ended <- informers.Start(ctx) }()
	go func() { ended <- w.reporter.Start(ctx) }()
	t.Cleanup(func() {
		stop()
		for range cap(ended) {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
		broadcaster.Shutdown()
	})
	return w
}

// create makes objects that no fault is expected of.
func (w world) create(objects ...client.Object) {
	w.Helper()
	for _, object := range objects {
		if err := w.admin.Create(w.Context(), object); err != nil {
			w.Fatalf("create %T %s: %v", object, object.GetName(), err)
		}
	}
}

func (w world) namespace(name string, labels map[string]string) {
	w.Helper()
	w.create(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}},
		&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: name, Name: "default"}})
}

// wantEvents waits until there is an event that begins with each of want, and
// fails if there are others. They are written side by side, in any order.
func (w world) wantEvents(want ...string) {
	w.Helper()
	deadline := time.Now().Add(30 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		var list eventsv1.EventList
		if err := w.admin.List(w.Context(), &list); err != nil {
			w.Fatal(err)
		}
		missing := slices.Clone(want)
		var got []string
		for _, e := range list.Items {
			text := fmt.Sprintf("%s/%s %s %s %s", e.Regarding.Kind, e.Regarding.Name, e.Type, e.Reason, e.Note)
			missing = slices.DeleteFunc(missing, func(w string) bool { return strings.HasPrefix(text, w) })
			got = append(got, text)
		}
		switch {
		case len(got) > len(want), time.Now().After(deadline):
			w.Fatalf("no event begins with %q, or there are too many:\n%s", missing, strings.Join(got, "\n"))
		case len(missing) == 0:
			return
		}
		<-tick.C
	}
}

func pod(namespace, name string, change func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "example.com/app"}}}}
	p.Namespace, p.Name = namespace, name
	change(p)
	return p
}

func asks(p *corev1.Pod) { p.Labels = map[string]string{"outrigger.dev/inject": "enabled"} }

// TestSurprisesAreToldOnOwners tells of pods that are not as somebody wanted them
// where a user looks, and of no others.
func TestSurprisesAreToldOnOwners(t *testing.T) {
	w := newWorld(t)
	w.namespace("on", map[string]string{"outrigger.dev/inject": "enabled"})
	w.namespace("outside", nil)
	web := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "outside", Name: "web"}, Spec: appsv1.DeploymentSpec{
		Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "web"}}, Spec: pod("", "", func(*corev1.Pod) {}).Spec},
	}}
	w.create(web)
	set := &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: "outside", Name: "web-1", OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(web, appsv1.SchemeGroupVersion.WithKind("Deployment"))}},
		Spec:       appsv1.ReplicaSetSpec{Selector: web.Spec.Selector, Template: web.Spec.Template},
	}
	w.create(set)
	byWeb := func(p *corev1.Pod) {
		asks(p)
		p.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(set, appsv1.SchemeGroupVersion.WithKind("ReplicaSet"))}
	}
	w.create(
		pod("outside", "quiet", func(*corev1.Pod) {}),
		pod("on", "out", func(p *corev1.Pod) { p.Labels = map[string]string{"outrigger.dev/inject": "no"} }),
		pod("on", "injected", func(p *corev1.Pod) {
			p.Spec.InitContainers = []corev1.Container{{Name: injector.ProxyContainer, Image: "example.com/proxy", RestartPolicy: new(corev1.ContainerRestartPolicyAlways)}}
		}),
		pod("outside", "web-1-a", byWeb),
		pod("outside", "web-1-b", byWeb),
		pod("on", "past", func(*corev1.Pod) {}),
		pod("on", "last", func(p *corev1.Pod) { asks(p); p.Spec.HostNetwork = true }),
	)
	w.wantEvents(
		"Deployment/web Warning NotInjected no sidecar (namespace-not-in-mesh): namespace outside is not part of the mesh; the label outrigger.dev/inject=enabled",
		"Pod/past Warning NotInjected no sidecar (namespace-enabled): its pods should have a sidecar but were created before the mesh",
		"Pod/last Warning NotInjected no sidecar (host-network): a pod on the host's network",
	)
}

// TestProblemsAreToldOnObjects tells of each problem once, as long as it is there.
func TestProblemsAreToldOnObjects(t *testing.T) {
	w := newWorld(t)
	problem := func(name string) ingest.Problem {
		return ingest.Problem{
			Object: ingest.ObjectRef{APIVersion: "access.smi-spec.io/v1alpha3", Kind: "TrafficTarget", Namespace: "default", Name: name, UID: "1"},
			Reason: "MissingRule", Message: "rules[0].name: there is no such rule",
		}
	}
	w.reporter.Problems([]ingest.Problem{problem("first")})
	w.wantEvents("TrafficTarget/first Warning MissingRule rules[0].name")
	w.reporter.Problems([]ingest.Problem{problem("first"), problem("second")})
	w.wantEvents("TrafficTarget/first Warning MissingRule", "TrafficTarget/second Warning MissingRule rules[0].name")
}
