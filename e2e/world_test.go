//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/outrigger-mesh/outrigger/e2e/harness"
)

// Namespaces of tests, by what they say of the mesh.
var (
	inMesh      = map[string]string{"outrigger.dev/inject": "enabled"}
	whoAsks     = map[string]string{"outrigger.dev/inject": "disabled"}
	outsideMesh map[string]string
)

// namespace makes a namespace of the test's own and returns its name. It is
// removed when the test has ended; if the test failed, its state is told first.
func namespace(t *testing.T, suffix string, labels map[string]string) string {
	t.Helper()
	name := prefix + strings.ToLower(strings.TrimPrefix(t.Name(), "Test"))
	ns := &corev1.Namespace{}
	ns.GenerateName, ns.Labels = name[:min(len(name), 40)]+"-"+suffix+"-", maps.Clone(labels)
	if err := cluster.Client.Create(t.Context(), ns); err != nil {
		t.Fatal(err)
	}
	name = ns.Name
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		if t.Failed() {
			t.Log(cluster.Report(ctx, name))
		}
		if err := client.IgnoreNotFound(cluster.Client.Delete(ctx, ns)); err != nil {
			t.Error(err)
		}
	})
	// Kubernetes makes it a moment later, and refuses pods until then.
	eventually(t, func(ctx context.Context) error {
		return cluster.Client.Get(ctx, client.ObjectKey{Namespace: name, Name: "default"}, &corev1.ServiceAccount{})
	})
	return name
}

// annotate changes an annotation of a namespace.
func annotate(t *testing.T, namespace, key, value string) {
	t.Helper()
	patchNamespace(t, namespace, "annotations", key, value)
}

// label changes a label of a namespace.
func label(t *testing.T, namespace, key, value string) {
	t.Helper()
	patchNamespace(t, namespace, "labels", key, value)
}

func patchNamespace(t *testing.T, namespace, field, key, value string) {
	t.Helper()
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{field: map[string]string{key: value}}})
	if err != nil {
		t.Fatal(err)
	}
	ns := &corev1.Namespace{}
	ns.Name = namespace
	if err := cluster.Client.Patch(t.Context(), ns, client.RawPatch("application/merge-patch+json", patch)); err != nil {
		t.Fatal(err)
	}
}

// An app is a pod with one container, its service account of the same name, and
// a Service where it has ports.
type app struct {
	name        string
	image       string   // bookstore where empty
	args        []string // of the image's program
	ports       map[string]int32
	account     string // the name where empty
	labels      map[string]string
	annotations map[string]string
	change      func(*corev1.PodSpec)
}

// A caller is a pod from which tests call others.
func caller(name string) app { return app{name: name, image: "client"} }

// An httpEcho is a server that answers with what it was asked, at port 8080 under
// a name that declares HTTP.
func httpEcho(name string) app {
	return app{
		name: name, args: []string{"http-echo", "--drain=0s", "--identity=" + name},
		ports: map[string]int32{"http": 8080},
	}
}

// A banner is a server that speaks first, at port 9000 under a name that declares TCP.
func banner(name string) app {
	return app{
		name: name, args: []string{"tcp-echo", "--drain=0s", "--banner=" + bannerText},
		ports: map[string]int32{"tcp": 9000},
	}
}

const bannerText = "220 who are you"

// podIn returns the pod, not created yet.
func (a app) podIn(namespace string) *corev1.Pod {
	image := a.image
	if image == "" {
		image = "bookstore"
	}
	pod := &corev1.Pod{}
	pod.Namespace, pod.Name, pod.Annotations = namespace, a.name, maps.Clone(a.annotations)
	pod.Labels = map[string]string{"app": a.name}
	maps.Copy(pod.Labels, a.labels)
	pod.Spec = corev1.PodSpec{
		ServiceAccountName:            a.serviceAccount(),
		TerminationGracePeriodSeconds: new(int64(3)),
		Containers: []corev1.Container{{
			Name: a.name, Image: cluster.Image(image), ImagePullPolicy: corev1.PullIfNotPresent, Args: a.args,
			Env: []corev1.EnvVar{fieldEnv("POD_NAME", "metadata.name"), fieldEnv("POD_IP", "status.podIP")},
		}},
	}
	container := &pod.Spec.Containers[0]
	if image == "client" && a.args != nil {
		container.Command = []string{"/bookstore"}
	}
	for name, port := range a.ports {
		container.Ports = append(container.Ports, corev1.ContainerPort{Name: name, ContainerPort: port})
		container.ReadinessProbe = &corev1.Probe{
			PeriodSeconds: 1,
			ProbeHandler:  corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(port)}},
		}
	}
	if a.change != nil {
		a.change(&pod.Spec)
	}
	return pod
}

// fieldEnv is a variable that Kubernetes fills in with a field of the pod; arguments
// name it as $(NAME).
func fieldEnv(name, field string) corev1.EnvVar {
	return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: field}}}
}

// beside returns a change that adds a container of the bookstore to a pod.
func beside(name string, args ...string) func(*corev1.PodSpec) {
	return func(spec *corev1.PodSpec) {
		spec.Containers = append(spec.Containers, corev1.Container{
			Name: name, Image: cluster.Image("bookstore"), ImagePullPolicy: corev1.PullIfNotPresent, Args: args,
			Env: spec.Containers[0].Env,
		})
	}
}

func (a app) serviceAccount() string {
	if a.account != "" {
		return a.account
	}
	return a.name
}

// create creates the app without waiting for it.
func (a app) create(t *testing.T, namespace string) *corev1.Pod {
	t.Helper()
	a.surround(t, namespace)
	pod := a.podIn(namespace)
	if err := cluster.Client.Create(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	return pod
}

// deploy creates the app as a Deployment, without waiting for it.
func (a app) deploy(t *testing.T, namespace string, replicas int32) {
	t.Helper()
	a.surround(t, namespace)
	pod := a.podIn(namespace)
	deployment := &appsv1.Deployment{}
	deployment.Namespace, deployment.Name = namespace, a.name
	deployment.Spec.Replicas = &replicas
	deployment.Spec.Selector = &metav1.LabelSelector{MatchLabels: pod.Labels}
	deployment.Spec.Template.Labels, deployment.Spec.Template.Annotations = pod.Labels, pod.Annotations
	deployment.Spec.Template.Spec = pod.Spec
	if err := cluster.Client.Create(t.Context(), deployment); err != nil {
		t.Fatal(err)
	}
}

// surround creates what the app's pods need: a service account, and a Service
// where there are ports.
func (a app) surround(t *testing.T, namespace string) {
	t.Helper()
	account := &corev1.ServiceAccount{}
	account.Namespace, account.Name = namespace, a.serviceAccount()
	if err := cluster.Client.Create(t.Context(), account); client.IgnoreAlreadyExists(err) != nil {
		t.Fatal(err)
	}
	if len(a.ports) > 0 {
		service := &corev1.Service{}
		service.Namespace, service.Name = namespace, a.name
		service.Spec.Selector = map[string]string{"app": a.name}
		for name, port := range a.ports {
			service.Spec.Ports = append(service.Spec.Ports, corev1.ServicePort{Name: name, Port: port})
		}
		if err := cluster.Client.Create(t.Context(), service); client.IgnoreAlreadyExists(err) != nil {
			t.Fatal(err)
		}
	}
}

// run creates the app and waits until it is ready.
func (a app) run(t *testing.T, namespace string) corev1.Pod {
	t.Helper()
	a.create(t, namespace)
	return ready(t, namespace, "app="+a.name)
}

// all creates apps at the same time and waits until all are ready.
func all(t *testing.T, namespace string, apps ...app) []corev1.Pod {
	t.Helper()
	for _, a := range apps {
		a.create(t, namespace)
	}
	pods := make([]corev1.Pod, len(apps))
	for i, a := range apps {
		pods[i] = ready(t, namespace, "app="+a.name)
	}
	return pods
}

// ready waits for the one pod that a selector matches.
func ready(t *testing.T, namespace, selector string) corev1.Pod {
	t.Helper()
	pods, err := cluster.Ready(t.Context(), namespace, selector, 1)
	if err != nil {
		t.Fatal(err)
	}
	return pods[0]
}

// readyAll waits for as many pods that a selector matches.
func readyAll(t *testing.T, namespace, selector string, count int) []corev1.Pod {
	t.Helper()
	pods, err := cluster.Ready(t.Context(), namespace, selector, count)
	if err != nil {
		t.Fatal(err)
	}
	return pods
}

// withdraw deletes what YAML documents name.
func withdraw(t *testing.T, text string) {
	t.Helper()
	if err := cluster.Delete(t.Context(), text); err != nil {
		t.Fatal(err)
	}
}

// apply creates or changes objects.
func apply(t *testing.T, text string, args ...any) {
	t.Helper()
	if err := cluster.Apply(t.Context(), fmt.Sprintf(text, args...)); err != nil {
		t.Fatal(err)
	}
}

// headless creates a headless Service of that name for the app server.
func headless(t *testing.T, namespace, ports string) {
	t.Helper()
	apply(t, `
apiVersion: v1
kind: Service
metadata: {namespace: %s, name: headless}
spec:
  clusterIP: None
  selector: {app: server}
  ports: [%s]
`, namespace, ports)
}

// eventually waits until check returns nil.
func eventually(t *testing.T, check func(context.Context) error) {
	t.Helper()
	if err := harness.Eventually(t.Context(), patience, check); err != nil {
		t.Fatal(err)
	}
}

// contextWithPatience is the test's context, for something that should take a moment.
func contextWithPatience(t *testing.T) (context.Context, context.CancelFunc) {
	t.Helper()
	return context.WithTimeout(t.Context(), patience)
}

// answers waits until a call is answered with a status, which it may not be at
// first because the proxies hear of a change a little later; 0 is no answer.
func answers(t *testing.T, from corev1.Pod, url string, status int, flags ...string) harness.Answer {
	t.Helper()
	var answer harness.Answer
	eventually(t, func(ctx context.Context) error {
		var err error
		if answer, err = cluster.Call(ctx, from, url, flags...); err != nil {
			return err
		}
		return answer.Want(status)
	})
	return answer
}

// consecutive waits until n calls one after the other, each over a connection of
// its own, end with the same code: a status, or "error" for no answer. It is the
// criterion of OSM's own tests: what once comes true must stay so.
func consecutive(t *testing.T, from corev1.Pod, url, code string, n int, flags ...string) harness.Load {
	t.Helper()
	flags = append([]string{"--requests", fmt.Sprint(n), "--concurrency=1", "--keep-alive=false"}, flags...)
	var load harness.Load
	eventually(t, func(ctx context.Context) error {
		var err error
		if load, err = cluster.Load(ctx, from, url, flags...); err != nil {
			return err
		}
		return load.All(code)
	})
	return load
}

// answersNow is like answers, at the first try.
func answersNow(t *testing.T, from corev1.Pod, url string, status int, flags ...string) harness.Answer {
	t.Helper()
	answer, err := cluster.Call(t.Context(), from, url, flags...)
	if err == nil {
		err = answer.Want(status)
	}
	if err != nil {
		t.Errorf("call of %s: %v", url, err)
	}
	return answer
}

// closed checks that a connection brings nothing, not even a server's first word.
func closed(t *testing.T, from corev1.Pod, address string, flags ...string) {
	t.Helper()
	received, end, err := cluster.Connect(t.Context(), from, address, flags...)
	if err != nil || received != "" {
		t.Errorf("connection of %s/%s to %s: received %q (%s, %v); want nothing", from.Namespace, from.Name, address, received, end, err)
	}
}

// opens waits until a connection brings the wanted text.
func opens(t *testing.T, from corev1.Pod, address, want string, flags ...string) {
	t.Helper()
	eventually(t, func(ctx context.Context) error {
		received, end, err := cluster.Connect(ctx, from, address, append(flags, "--expect", want)...)
		if err == nil && !strings.Contains(received, want) {
			err = fmt.Errorf("received %q (%s); want %q", received, end, want)
		}
		return err
	})
}

// isInjected reports whether a pod has the init container and the native sidecar,
// first.
func isInjected(pod *corev1.Pod) bool {
	init := pod.Spec.InitContainers
	return len(init) >= 2 && init[0].Name == "outrigger-init" && init[1].Name == "outrigger-proxy" &&
		init[1].RestartPolicy != nil && *init[1].RestartPolicy == corev1.ContainerRestartPolicyAlways
}

// service returns the DNS name of a Service.
func service(namespace, name string) string { return name + "." + namespace + ".svc.cluster.local" }

// echoURL returns where an httpEcho is asked for a path.
func echoURL(namespace, name, path string) string {
	return "http://" + service(namespace, name) + ":8080" + path
}

// allow lets service accounts ("namespace/name") make all requests to an app.
func allow(t *testing.T, namespace, destination string, sources ...string) {
	t.Helper()
	apply(t, "%s---\n%s", routes(namespace, "everything", "{name: everything}"), target(namespace, destination, everything, sources...))
}

// everything is the rule that allow writes.
const everything = "HTTPRouteGroup/everything/everything"

// routes returns an HTTPRouteGroup with those matches.
func routes(namespace, name, matches string) string {
	return fmt.Sprintf(`apiVersion: specs.smi-spec.io/v1alpha4
kind: HTTPRouteGroup
metadata: {namespace: %s, name: %s}
spec: {matches: [%s]}
`, namespace, name, matches)
}

// tcpRoute returns a TCPRoute of ports, as "9000, 9001".
func tcpRoute(namespace, name, ports string) string {
	return fmt.Sprintf(`apiVersion: specs.smi-spec.io/v1alpha4
kind: TCPRoute
metadata: {namespace: %s, name: %s}
spec: {matches: {ports: [%s]}}
`, namespace, name, ports)
}

// allowTCP lets service accounts open ports of an app.
func allowTCP(t *testing.T, namespace, destination, ports string, sources ...string) {
	t.Helper()
	apply(t, "%s---\n%s", tcpRoute(namespace, destination, ports), target(namespace, destination, "TCPRoute/"+destination, sources...))
}

// target returns a TrafficTarget. A rule is KIND/NAME, with /MATCH,MATCH for an
// HTTPRouteGroup.
func target(namespace, destination, rule string, sources ...string) string {
	parts := strings.Split(rule, "/")
	matches := ""
	if len(parts) == 3 {
		matches = ", matches: [" + parts[2] + "]"
	}
	text := fmt.Sprintf(`apiVersion: access.smi-spec.io/v1alpha3
kind: TrafficTarget
metadata: {namespace: %s, name: %s-%s}
spec:
  destination: {kind: ServiceAccount, name: %s, namespace: %s}
  rules: [{kind: %s, name: %s%s}]
  sources:
`, namespace, destination, parts[1], destination, namespace, parts[0], parts[1], matches)
	for _, source := range sources {
		ns, name, _ := strings.Cut(source, "/")
		text += fmt.Sprintf("  - {kind: ServiceAccount, name: %s, namespace: %s}\n", name, ns)
	}
	return text
}

// dryRun asks the API server what would become of a pod.
func dryRun(t *testing.T, pod *corev1.Pod) (*corev1.Pod, error) {
	t.Helper()
	return cluster.Set.CoreV1().Pods(pod.Namespace).Create(t.Context(), pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
}
