//go:build integration

package controller

import (
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

	"github.com/outrigger-mesh/outrigger/injector"
	"github.com/outrigger-mesh/outrigger/internal/ingest"
)

// world is a part of an API server with a Reporter.
type world struct {
	*part
	reporter    *Reporter
	on, outside string // namespaces in the mesh and outside of it
}

func newWorld(t *testing.T) world {
	t.Parallel()
	w := world{on: unique("on"), outside: unique("outside")}
	w.part = newPart(t, apiServer.Config, newScheme(t), w.on, w.outside)
	set, err := kubernetes.NewForConfig(apiServer.Config)
	must(t, err)
	broadcaster := events.NewBroadcaster(&events.EventSinkImpl{Interface: set.EventsV1()})
	must(t, broadcaster.StartRecordingToSinkWithContext(t.Context()))
	t.Cleanup(broadcaster.Shutdown)
	w.reporter = NewReporter(Reporter{
		Cache: w.informers, Owners: w.admin, Events: broadcaster.NewRecorder(w.admin.Scheme(), "outriggerd"),
		Injector: injector.Settings{SystemNamespace: "outrigger-system", OSMMesh: "osm"}, Log: testr.New(t),
	})
	w.namespace(w.on, inMesh)
	w.namespace(w.outside, nil)
	t.Cleanup(w.run(w.reporter.Start))
	return w
}

// wantEvents waits until there is an event that begins with each of want, and
// fails if there are others. They are written side by side, in any order.
func (w world) wantEvents(want ...string) {
	w.t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		var list eventsv1.EventList
		must(w.t, w.admin.List(w.t.Context(), &list))
		missing := slices.Clone(want)
		var got []string
		for _, e := range list.Items {
			if e.Namespace != w.on && e.Namespace != w.outside {
				continue // another test's
			}
			text := fmt.Sprintf("%s/%s %s %s %s", e.Regarding.Kind, e.Regarding.Name, e.Type, e.Reason, e.Note)
			missing = slices.DeleteFunc(missing, func(w string) bool { return strings.HasPrefix(text, w) })
			got = append(got, text)
		}
		switch {
		case len(got) > len(want), time.Now().After(deadline):
			w.t.Fatalf("no event begins with %q, or there are too many:\n%s", missing, strings.Join(got, "\n"))
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
	web := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: w.outside, Name: "web"}, Spec: appsv1.DeploymentSpec{
		Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "web"}}, Spec: pod("", "", func(*corev1.Pod) {}).Spec},
	}}
	w.create(web)
	set := &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: w.outside, Name: "web-1", OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(web, appsv1.SchemeGroupVersion.WithKind("Deployment"))}},
		Spec:       appsv1.ReplicaSetSpec{Selector: web.Spec.Selector, Template: web.Spec.Template},
	}
	w.create(set)
	byWeb := func(p *corev1.Pod) {
		asks(p)
		p.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(set, appsv1.SchemeGroupVersion.WithKind("ReplicaSet"))}
	}
	w.create(
		pod(w.outside, "quiet", func(*corev1.Pod) {}),
		pod(w.on, "out", func(p *corev1.Pod) { p.Labels = map[string]string{"outrigger.dev/inject": "no"} }),
		pod(w.on, "injected", func(p *corev1.Pod) {
			p.Spec.InitContainers = []corev1.Container{{Name: injector.ProxyContainer, Image: "example.com/proxy", RestartPolicy: new(corev1.ContainerRestartPolicyAlways)}}
		}),
		pod(w.outside, "web-1-a", byWeb),
		pod(w.outside, "web-1-b", byWeb),
		pod(w.on, "past", func(*corev1.Pod) {}),
		pod(w.on, "last", func(p *corev1.Pod) { asks(p); p.Spec.HostNetwork = true }),
	)
	w.wantEvents(
		"Deployment/web Warning NotInjected no sidecar (namespace-not-in-mesh): namespace "+w.outside+" is not part of the mesh; the label outrigger.dev/inject=enabled",
		"Pod/past Warning NotInjected no sidecar (namespace-enabled): its pods should have a sidecar but were created before the mesh",
		"Pod/last Warning NotInjected no sidecar (host-network): a pod on the host's network",
	)
}

// TestProblemsAreToldOnObjects tells of each problem once, as long as it is there.
func TestProblemsAreToldOnObjects(t *testing.T) {
	w := newWorld(t)
	problem := func(name string) ingest.Problem {
		return ingest.Problem{
			Object: ingest.ObjectRef{APIVersion: "access.smi-spec.io/v1alpha3", Kind: "TrafficTarget", Namespace: w.on, Name: name, UID: "1"},
			Reason: "MissingRule", Message: "rules[0].name: there is no such rule",
		}
	}
	w.reporter.Problems([]ingest.Problem{problem("first")})
	w.wantEvents("TrafficTarget/first Warning MissingRule rules[0].name")
	w.reporter.Problems([]ingest.Problem{problem("first"), problem("second")})
	w.wantEvents("TrafficTarget/first Warning MissingRule", "TrafficTarget/second Warning MissingRule rules[0].name")
}
