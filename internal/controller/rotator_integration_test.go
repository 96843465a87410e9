//go:build integration

package controller

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr/testr"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/outrigger-mesh/outrigger/injector"
	"github.com/outrigger-mesh/outrigger/internal/rotation"
)

// A turning is a mesh of two replicas whose authority is rotated, at a real API server.
// Its pods acknowledge at once whatever their replica follows.
type turning struct {
	*part
	system, shop string // namespaces
	lookup       Lookup
	events       *events.FakeRecorder

	mu   sync.Mutex
	away map[string]bool // uids of pods that no replica knows
}

func newTurning(t *testing.T) *turning {
	t.Helper()
	t.Parallel()
	w := &turning{system: unique("outrigger-system"), shop: unique("shop"), away: map[string]bool{}, events: events.NewFakeRecorder(1000)}
	w.part = newPart(t, apiServer.Config, newScheme(t), w.system, w.shop)
	w.lookup = Lookup{Cached: w.informers, SystemNamespace: w.system}
	w.namespace(w.system, nil)
	w.namespace(w.shop, inMesh)
	return w
}

// pod makes a pod that runs, with a proxy or as a replica of outriggerd.
func (w *turning) pod(namespace, name string, labels map[string]string) *corev1.Pod {
	w.t.Helper()
	always := corev1.ContainerRestartPolicyAlways
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: labels},
		Spec: corev1.PodSpec{
			InitContainers: []corev1.Container{{Name: injector.ProxyContainer, Image: "i", RestartPolicy: &always}},
			Containers:     []corev1.Container{{Name: "app", Image: "i"}},
		},
	}
	w.create(p)
	p.Status.Phase = corev1.PodRunning
	if err := w.admin.Status().Update(w.t.Context(), p); err != nil {
		w.t.Fatal(err)
	}
	return p
}

// replica starts a replica of outriggerd, which knows all pods.
func (w *turning) replica(name string, pods []*corev1.Pod) {
	w.t.Helper()
	own := w.pod(w.system, name, map[string]string{"app.kubernetes.io/component": "outriggerd"})
	var now rotation.State
	f := &StateFollower{
		Cache: w.informers, Client: w.admin, Namespace: w.system, Mesh: "outrigger", Replica: name, UID: string(own.UID),
		First: builtIn("a", "old"), Log: testr.New(w.t).WithName(name),
	}
	f.Follow = func(s rotation.State) { now = s }
	f.Report = func() rotation.Report {
		w.mu.Lock()
		defer w.mu.Unlock()
		var known []rotation.Known
		for _, p := range pods {
			if !w.away[string(p.UID)] {
				known = append(known, rotation.Known{
					UID: string(p.UID), Connected: true, Trusts: now.Generation, At: time.Unix(now.Generation, 0),
					Leaf: &rotation.Leaf{Authority: now.Signing, End: time.Now().Add(time.Hour).Truncate(time.Hour)},
				})
			}
		}
		return rotation.Report{Generation: now.Generation, Serving: now.Serving, Groups: rotation.Gather(known)}
	}
	w.t.Cleanup(w.run(f.Start))
}

func builtIn(name, domain string) rotation.Authority {
	return rotation.Authority{Name: name, TrustDomain: domain, BuiltIn: &rotation.BuiltIn{Secret: name}}
}

// rotator starts an elected replica, which can open everything.
func (w *turning) rotator() (stop func()) {
	var mu sync.Mutex
	open := []rotation.Authority{builtIn("a", "old")}
	roots := &RootReader{Client: w.admin, Scope: rotation.RootScope{Namespace: w.system}}
	r := NewRotator(RotatorConfig{
		Cache: w.informers, Client: w.admin, Lookup: w.lookup, First: builtIn("a", "old"),
		Roles: roots.Goal, Told: roots.Tell,
		Open: func(also []rotation.Authority) {
			mu.Lock()
			defer mu.Unlock()
			// What is to be opened counts, also against another one of its name.
			open = append([]rotation.Authority{builtIn("a", "old"), builtIn("b", "new")}, also...)
		},
		Opened: func() map[string]rotation.Open {
			mu.Lock()
			defer mu.Unlock()
			opened := map[string]rotation.Open{}
			for _, a := range open {
				opened[a.Name] = rotation.Open{Authority: a, Roots: "PEM of " + a.Name, Prints: []string{a.Name}}
			}
			return opened
		},
		Events: w.events, Log: testr.New(w.t).WithName("rotator"), Metrics: prometheus.NewRegistry(),
	})
	return w.run(r.Start)
}

func (w *turning) read() Authorities {
	w.t.Helper()
	var a Authorities
	eventually(w.t, "there is a state", func() error {
		var err error
		a, err = ReadAuthorities(w.t.Context(), w.admin, w.system)
		return err
	})
	return a
}

func (w *turning) want(change func(*rotation.Control)) {
	w.t.Helper()
	eventually(w.t, "it is wanted", func() error {
		a := w.read()
		change(&a.Wanted)
		return Want(w.t.Context(), w.admin, a, a.Wanted)
	})
}

// TestRotationSurvivesItsDriver rotates to another trust domain and has another
// elected replica take over at every step, at once or only after a while.
func TestRotationSurvivesItsDriver(t *testing.T) {
	w := newTurning(t)
	pods := []*corev1.Pod{w.pod(w.shop, "one", nil), w.pod(w.shop, "two", nil)}
	w.replica("outriggerd-1", pods)
	w.replica("outriggerd-2", pods[:1])
	stop := w.rotator()
	defer func() { stop() }()
	w.want(func(c *rotation.Control) {
		c.Goal, c.By = rotation.Goal{Sign: builtIn("b", "new")}, "a test"
	})
	var steps []string
	deadline := time.Now().Add(rotationTime)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for ; ; <-tick.C {
		a := w.read()
		if r := a.State.Rotation; r != nil && (len(steps) == 0 || steps[len(steps)-1] != string(r.Step)) {
			steps = append(steps, string(r.Step))
			stop()
			stop = w.rotator()
		}
		if a.State.Last != nil && a.State.Rotation == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("not done: %s", a.State.JSON())
		}
	}
	all := strings.Join(steps, " ")
	for _, step := range []rotation.Step{rotation.StepTrust, rotation.StepSign, rotation.StepServe, rotation.StepNarrow, rotation.StepForget} {
		if !strings.Contains(all, string(step)) {
			t.Errorf("the steps were %s; %s is not among them", all, step)
		}
	}
	a := w.read()
	if a.State.Signing != "b" || len(a.State.Trusted) != 1 || a.State.Trusted[0].Roots != "PEM of b" || len(a.State.Fading) > 0 {
		t.Errorf("in the end: %s", a.State.JSON())
	}
	w.wantEvent("RotationStarted", "RotationFinished")
}

func (w *turning) wantEvent(reasons ...string) {
	w.t.Helper()
	for _, reason := range reasons {
		for found := false; !found; {
			select {
			case e := <-w.events.Events:
				found = strings.Contains(e, reason)
			default:
				w.t.Errorf("there is no Event %s", reason)
				found = true
			}
		}
	}
}

// TestAwayPodBlocks holds that a pod which no replica knows blocks a rotation, that
// pausing, forcing and undoing come through the ConfigMap, and that a deleted one is
// written again.
func TestAwayPodBlocks(t *testing.T) {
	w := newTurning(t)
	pods := []*corev1.Pod{w.pod(w.shop, "one", nil), w.pod(w.shop, "two", nil)}
	w.away[string(pods[1].UID)] = true
	w.replica("outriggerd-1", pods)
	defer w.rotator()()
	w.want(func(c *rotation.Control) { c.Goal = rotation.Goal{Sign: builtIn("b", "new")} })
	var progress rotation.Progress
	eventually(t, "one pod is behind", func() error {
		a := w.read()
		seen, _, err := MeshSeen(t.Context(), w.informers, w.lookup, time.Now())
		if err != nil {
			return err
		}
		progress = a.State.Progress(seen)
		if a.State.Rotation == nil || a.State.Rotation.Step != rotation.StepTrust || progress.Done != 1 || progress.Replicas != 1 {
			return fmt.Errorf("%+v of %s", progress, a.State.JSON())
		}
		return nil
	})
	if len(progress.Behind) != 1 || progress.Behind[0].Who != w.shop+"/two" {
		t.Errorf("behind is %+v", progress.Behind)
	}
	w.want(func(c *rotation.Control) { c.Paused = true })
	eventually(t, "it is paused", func() error {
		if !w.read().State.Rotation.Paused {
			return fmt.Errorf("it is not")
		}
		return nil
	})
	w.want(func(c *rotation.Control) { c.Paused, c.Forced = false, []string{w.shop + "/two"} })
	eventually(t, "it goes on without the pod", func() error {
		if a := w.read(); a.State.Signing != "b" {
			return fmt.Errorf("%s signs", a.State.Signing)
		}
		return nil
	})
	w.want(func(c *rotation.Control) { c.Undo = true })
	eventually(t, "it is undone", func() error {
		if a := w.read(); a.State.Signing != "a" || a.State.Rotation != nil {
			return fmt.Errorf("%s", a.State.JSON())
		}
		return nil
	})
	before := w.read()
	if err := w.admin.Delete(t.Context(), before.Object); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the state is written again", func() error {
		a, err := ReadAuthorities(t.Context(), w.admin, w.system)
		if err == nil && a.State.Generation != before.State.Generation {
			t.Fatalf("generation %d after %d", a.State.Generation, before.State.Generation)
		}
		return err
	})
	if err := w.admin.Get(t.Context(), client.ObjectKey{Namespace: w.system, Name: "outrigger-report-outriggerd-1"}, &corev1.ConfigMap{}); apierrors.IsNotFound(err) {
		t.Error("the replica does not report")
	}
}
