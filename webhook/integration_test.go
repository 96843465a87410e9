//go:build integration

package webhook

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apiserver/pkg/cel/environment"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/outrigger-mesh/outrigger/e2e/cluster/local"
	"github.com/outrigger-mesh/outrigger/injector"
	"github.com/outrigger-mesh/outrigger/internal/annotation"
)

// A warningLog holds the warnings of one request.
type warningLog struct {
	mu   sync.Mutex
	said []string
}

func (w *warningLog) HandleWarningHeader(_ int, _, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.said = append(w.said, text)
}

func (w *warningLog) take() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	said := w.said
	w.said = nil
	return said
}

// A world is a real API server that calls a real handler.
type world struct {
	client   *kubernetes.Clientset
	config   *rest.Config
	warnings *warningLog
	hook     *httptest.Server
}

func newWorld(t *testing.T) *world {
	t.Helper()
	server, err := local.StartAPIServer(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Stop)
	w := &world{warnings: &warningLog{}, hook: httptest.NewTLSServer(newHandler(t, cache(namespaces()), nil))}
	t.Cleanup(w.hook.Close)
	config := rest.CopyConfig(server.Config)
	config.WarningHandler, config.QPS = w.warnings, -1
	w.client, w.config = kubernetes.NewForConfigOrDie(config), config
	for _, ns := range namespaces() {
		w.makeNamespace(t, ns)
	}
	mutating, validating := Configurations(w.options())
	hooks := w.client.AdmissionregistrationV1()
	if _, err := hooks.MutatingWebhookConfigurations().Create(t.Context(), mutating, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := hooks.ValidatingWebhookConfigurations().Create(t.Context(), validating, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.until(t, "both configurations are in force", func(ctx context.Context) bool {
		enabled, _ := w.tryCreate(ctx, "enabled", pods()["silent"])
		_, _ = w.tryCreate(ctx, "plain", pods()["label-enabled"])
		return hasSidecar(enabled) && len(w.warnings.take()) > 0
	})
	return w
}

// options are those with which the API server calls the handler.
func (w *world) options() Options {
	o := options()
	o.URL = w.hook.URL
	o.CABundle = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: w.hook.Certificate().Raw})
	return o
}

func (w *world) makeNamespace(t *testing.T, ns injector.Namespace) {
	t.Helper()
	object := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns.Name, Labels: ns.Labels, Annotations: ns.Annotations}}
	_, err := w.client.CoreV1().Namespaces().Create(t.Context(), object, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) { // kube-system
		patch := marshal(t, map[string]any{"metadata": map[string]any{"labels": ns.Labels}})
		_, err = w.client.CoreV1().Namespaces().Patch(t.Context(), ns.Name, types.MergePatchType, patch, metav1.PatchOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}
	if _, err := w.client.CoreV1().ServiceAccounts(ns.Name).Create(t.Context(), account, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
}

// tryCreate asks for a pod as if it were to be created. A dry run goes all the way
// through admission and defaults, and leaves nothing behind.
func (w *world) tryCreate(ctx context.Context, namespace string, pod *corev1.Pod) (*corev1.Pod, error) {
	return w.client.CoreV1().Pods(namespace).Create(ctx, pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
}

func (w *world) until(t *testing.T, what string, done func(context.Context) bool) {
	t.Helper()
	err := wait.PollUntilContextTimeout(t.Context(), 50*time.Millisecond, 30*time.Second, true, func(ctx context.Context) (bool, error) {
		return done(ctx), nil
	})
	if err != nil {
		t.Fatalf("wait until %s: %v", what, err)
	}
}

func hasSidecar(pod *corev1.Pod) bool {
	if pod == nil {
		return false
	}
	has := func(name string) bool {
		return slices.ContainsFunc(pod.Spec.InitContainers, func(c corev1.Container) bool { return c.Name == name })
	}
	return has(injector.InitContainer) && has(injector.ProxyContainer)
}

// realPods are the pods of the table as a real API server takes them.
func realPods() map[string]*corev1.Pod {
	list := pods()
	list["mirror"].Spec.NodeName = "node" // a mirror without a node is invalid
	return list
}

// TestRealAPIServer creates pods through a real API server.
func TestRealAPIServer(t *testing.T) {
	w := newWorld(t)
	t.Run("Verdicts", w.testVerdicts)
	t.Run("Workloads", w.testWorkloads)
	t.Run("Copy", w.testCopy)
	t.Run("Reinvocation", w.testReinvocation)
	t.Run("Refusals", w.testRefusals)
	t.Run("OldMistakes", w.testOldMistakes)
	t.Run("SwitchOff", w.testSwitchOff)
	t.Run("AnyTrafficTarget", w.testAnyTrafficTarget) // changes the configuration
	t.Run("Outage", w.testOutage)                     // last: it stops the handler
}

// testVerdicts wants each pod in each namespace to be injected, left alone or
// refused as Decide says, the client to see warnings where there is a surprise,
// and what the API server has filled in to need no further patch.
func (w *world) testVerdicts(t *testing.T) {
	s := settings()
	for nsName, ns := range namespaces() {
		for podName, pod := range realPods() {
			where := fmt.Sprintf("namespace %s, pod %s", nsName, podName)
			verdict := injector.Decide(injector.Request{Namespace: ns, Match: injector.MatchNamespace(ns, s), Pod: pod}, s)
			w.warnings.take()
			got, err := w.tryCreate(t.Context(), nsName, pod)
			said := strings.Join(w.warnings.take(), "\n")
			if verdict.Outcome == injector.Denied {
				if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), verdict.Message) {
					t.Errorf("%s: error %v, want forbidden: %s", where, err, verdict.Message)
				}
				continue
			}
			if mistaken(ns, pod) { // also what will not be injected
				if err := refused(err, annotation.Inject); err != nil {
					t.Errorf("%s: %v", where, err)
				}
				continue
			}
			if err != nil {
				t.Errorf("%s: %v", where, err)
				continue
			}
			if hasSidecar(got) != (verdict.Outcome == injector.Injected) {
				t.Errorf("%s: sidecar %v, but it should be %s", where, hasSidecar(got), verdict.Outcome)
			}
			// Who says nothing about the mesh, in a namespace outside it, is not
			// asked about; nobody is surprised by another mesh there.
			if verdict.Surprising != strings.Contains(said, verdict.Message) {
				t.Errorf("%s: surprising is %v (%s), but the client saw %q", where, verdict.Surprising, verdict.Message, said)
			}
			if verdict.Outcome == injector.Injected {
				if ops, err := injector.Patch(got, s); err != nil || len(ops) != 0 {
					t.Errorf("%s: the pod as the API server has it would be patched again: %v %v", where, err, ops)
				}
			}
		}
	}
}

// mistaken reports whether a pod is refused for its annotations.
func mistaken(ns injector.Namespace, pod *corev1.Pod) bool {
	_, ours := pod.Annotations[annotation.Inject] // the only key of ours in the table
	return ours && injector.MatchNamespace(ns, settings()) != injector.NoMatch && len(annotation.CheckPod(pod.Annotations)) > 0
}

func (w *world) testWorkloads(t *testing.T) {
	deployment := &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec: appsv1.DeploymentSpec{
			Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "web", annotation.Inject: "enabled"}},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "example.com/app:1"}}},
			},
		},
	}
	for namespace, want := range map[string]string{"plain": "outrigger.dev/inject=disabled", "enabled": ""} {
		w.warnings.take()
		if _, err := w.client.AppsV1().Deployments(namespace).Create(t.Context(), deployment, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}); err != nil {
			t.Fatal(err)
		}
		said := strings.Join(w.warnings.take(), "\n")
		if want == "" && said != "" || !strings.Contains(said, want) {
			t.Errorf("deployment in %s: the client saw %q, want %q", namespace, said, want)
		}
	}
}

// testCopy makes what kubectl debug --copy-to makes of an injected pod.
func (w *world) testCopy(t *testing.T) {
	original := pods()["silent"].DeepCopy()
	probe := &corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(8080)}}}
	original.Spec.Containers[0].LivenessProbe = probe
	injected, err := w.tryCreate(t.Context(), "enabled", original)
	if err != nil {
		t.Fatal(err)
	}
	if http := injected.Spec.Containers[0].LivenessProbe.HTTPGet; http == nil || http.Path != "/probe/app/liveness" {
		t.Errorf("liveness probe %+v was not rewritten", injected.Spec.Containers[0].LivenessProbe)
	}
	copied := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "copy"}, Spec: injected.Spec}
	copied.Spec.Containers[0].LivenessProbe = nil
	copied.Spec.Containers = append(copied.Spec.Containers, corev1.Container{Name: "debugger", Image: "example.com/tools:1"})
	got, err := w.tryCreate(t.Context(), "enabled", copied)
	if err != nil {
		t.Fatal(err)
	}
	if !hasSidecar(got) || len(got.Spec.InitContainers) != 2 {
		t.Errorf("the copy has init containers %v, want the sidecar's two", names(got.Spec.InitContainers))
	}
	if args := got.Spec.InitContainers[1].Args[1]; strings.Contains(args, "probe") {
		t.Errorf("the copy has no probes, but its sidecar has %s", args)
	}
}

func names(list []corev1.Container) []string {
	var n []string
	for _, c := range list {
		n = append(n, c.Name)
	}
	return n
}

// testReinvocation has another webhook, called after ours, add a container with a
// probe and an init container in front. Ours is called again and completes both.
func (w *world) testReinvocation(t *testing.T) {
	other := httptest.NewTLSServer(addingHandler(t))
	defer other.Close()
	hook := admissionregistrationv1.MutatingWebhook{
		Name:                    "adds.example.com",
		ClientConfig:            admissionregistrationv1.WebhookClientConfig{URL: new(other.URL), CABundle: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: other.Certificate().Raw})},
		Rules:                   []admissionregistrationv1.RuleWithOperations{rule("", []string{"pods"}, admissionregistrationv1.Create)},
		ObjectSelector:          &metav1.LabelSelector{MatchLabels: map[string]string{"add": "one"}},
		SideEffects:             new(admissionregistrationv1.SideEffectClassNone),
		AdmissionReviewVersions: []string{"v1"},
	}
	configurations := w.client.AdmissionregistrationV1().MutatingWebhookConfigurations()
	config := &admissionregistrationv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "zz-adds"}, Webhooks: []admissionregistrationv1.MutatingWebhook{hook}}
	if _, err := configurations.Create(t.Context(), config, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := configurations.Delete(context.WithoutCancel(t.Context()), config.Name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	}()
	pod := pods()["silent"].DeepCopy()
	pod.Labels = map[string]string{"add": "one"}
	var got *corev1.Pod
	w.until(t, "the other webhook is in force", func(ctx context.Context) bool {
		var err error
		got, err = w.tryCreate(ctx, "enabled", pod)
		return err == nil && len(got.Spec.Containers) == 2
	})
	if diff := cmp.Diff([]string{injector.InitContainer, injector.ProxyContainer, "early"}, names(got.Spec.InitContainers)); diff != "" {
		t.Errorf("init containers (-want +got):\n%s", diff)
	}
	if http := got.Spec.Containers[1].ReadinessProbe.HTTPGet; http == nil || http.Path != "/probe/late/readiness" {
		t.Errorf("the probe of the container that came later was not rewritten: %+v", got.Spec.Containers[1].ReadinessProbe)
	}
	if args := got.Spec.InitContainers[1].Args[1]; !strings.Contains(args, "/probe/late/readiness") {
		t.Errorf("the agent does not know the probe that came later: %s", args)
	}
	if ops, err := injector.Patch(got, settings()); err != nil || len(ops) != 0 {
		t.Errorf("it would be patched again: %v %v", err, ops)
	}
}

// testOutage stops the handler. What no webhook is for goes on as if there were
// no mesh; the rest is blocked.
func (w *world) testOutage(t *testing.T) {
	w.hook.Close()
	match := matchers(t, environment.MustBaseEnvSet(environment.DefaultCompatibilityVersion()))
	all := namespaces()
	blocked := map[bool]int{}
	for _, nsName := range slices.Sorted(maps.Keys(all)) {
		for podName, pod := range realPods() {
			got, err := w.tryCreate(t.Context(), nsName, pod)
			want := len(match(all[nsName], pod)) > 0
			blocked[want]++
			var status *apierrors.StatusError
			if want != (errors.As(err, &status) && strings.Contains(err.Error(), "failed calling webhook")) {
				t.Errorf("namespace %s, pod %s: blocked should be %v, got error %v", nsName, podName, want, err)
			}
			if !want && (err != nil || hasSidecar(got)) {
				t.Errorf("namespace %s, pod %s: not as without a mesh: %v", nsName, podName, err)
			}
		}
	}
	if blocked[true] == 0 || blocked[false] == 0 {
		t.Errorf("blocked and let through: %v; both must be seen", blocked)
	}
	w.warnings.take()
	for _, fixed := range []struct {
		namespace, pod string
		blocked        bool
	}{
		{"enabled", "silent", true},
		{"enabled", "label-disabled", false},
		{"enabled", "host-network", false},
		{"disabled", "silent", false},
		{"disabled", "label-enabled", true},
		{"osm", "silent", true},
		{"osm-enabled", "osm-disabled", false},
		{"plain", "label-enabled", false},
		{"ignored", "silent", false},
		{"kube-system", "label-enabled", false},
		{"enabled", "mirror", false},
	} {
		if _, err := w.tryCreate(t.Context(), fixed.namespace, realPods()[fixed.pod]); (err != nil) != fixed.blocked {
			t.Errorf("namespace %s, pod %s: error %v, blocked should be %v", fixed.namespace, fixed.pod, err, fixed.blocked)
		}
	}
}
