package manifests_test

import (
	"errors"
	"io"
	"maps"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/yaml"

	"github.com/outrigger-mesh/outrigger/e2e/demo/manifests"
	accessv1alpha3 "github.com/outrigger-mesh/outrigger/internal/api/access/v1alpha3"
	specsv1alpha4 "github.com/outrigger-mesh/outrigger/internal/api/specs/v1alpha4"
	splitv1alpha2 "github.com/outrigger-mesh/outrigger/internal/api/split/v1alpha2"
)

// objects is what some YAML documents hold.
type objects []*unstructured.Unstructured

func parse(t *testing.T, text string) objects {
	t.Helper()
	var parsed objects
	documents := yaml.NewYAMLToJSONDecoder(strings.NewReader(text))
	for {
		var object unstructured.Unstructured
		err := documents.Decode(&object)
		if errors.Is(err, io.EOF) {
			return parsed
		}
		if err != nil {
			t.Fatal(err)
		}
		parsed = append(parsed, &object)
	}
}

// demo returns all that the demo deploys.
func demo(t *testing.T) objects {
	t.Helper()
	return slices.Concat(parse(t, manifests.Bookstore), parse(t, manifests.Policy), parse(t, manifests.Job))
}

// of returns the objects of a kind as that type, and fails the test where one
// has a field that the type does not know.
func of[T any](t *testing.T, among objects, version, kind string) []*T {
	t.Helper()
	var typed []*T
	for _, object := range among {
		if object.GetKind() != kind || object.GetAPIVersion() != version {
			continue
		}
		var into T
		if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(object.Object, &into, true); err != nil {
			t.Errorf("%s %s: %v", kind, object.GetName(), err)
		}
		typed = append(typed, &into)
	}
	if len(typed) == 0 {
		t.Fatalf("there is no %s of %s", kind, version)
	}
	return typed
}

// has reports whether there is such an object.
func (o objects) has(kind, namespace, name string) bool {
	return slices.ContainsFunc(o, func(object *unstructured.Unstructured) bool {
		return object.GetKind() == kind && object.GetNamespace() == namespace && object.GetName() == name
	})
}

// templates returns the pod templates by namespace and name of what holds them.
func templates(t *testing.T, among objects) map[string]corev1.PodTemplateSpec {
	t.Helper()
	pods := map[string]corev1.PodTemplateSpec{}
	for _, deployment := range of[appsv1.Deployment](t, among, "apps/v1", "Deployment") {
		pods[deployment.Namespace+"/"+deployment.Name] = deployment.Spec.Template
		if selector := deployment.Spec.Selector.MatchLabels; !maps.Equal(selector, deployment.Spec.Template.Labels) {
			t.Errorf("deployment %s selects %v", deployment.Name, selector)
		}
	}
	for _, job := range of[batchv1.Job](t, among, "batch/v1", "Job") {
		pods[job.Namespace+"/"+job.Name] = job.Spec.Template
	}
	return pods
}

func TestEveryFileIsUsed(t *testing.T) {
	files, err := filepath.Glob("*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	// Namespaces, four applications, route groups, targets, two splits, a job.
	if len(files) != 10 {
		t.Errorf("there are %d files, want 10: is a new one embedded, and tested here? %v", len(files), files)
	}
	if got := len(demo(t)); got != 25 {
		t.Errorf("the demo has %d objects, want 25: does each file end with a line break?", got)
	}
}

func TestWorkloadsLeadSomewhere(t *testing.T) {
	all := demo(t)
	for _, object := range all {
		if object.GetKind() != "Namespace" && !all.has("Namespace", "", object.GetNamespace()) {
			t.Errorf("%s %s: there is no namespace %q", object.GetKind(), object.GetName(), object.GetNamespace())
		}
	}
	pods := templates(t, all)
	for name, pod := range pods {
		namespace, _, _ := strings.Cut(name, "/")
		if !all.has("ServiceAccount", namespace, pod.Spec.ServiceAccountName) {
			t.Errorf("%s: there is no account %q", name, pod.Spec.ServiceAccountName)
		}
	}
	selected := map[string]int{}
	for _, service := range of[corev1.Service](t, all, "v1", "Service") {
		for name, pod := range pods {
			if strings.HasPrefix(name, service.Namespace+"/") && labels.SelectorFromSet(service.Spec.Selector).Matches(labels.Set(pod.Labels)) {
				selected[service.Name]++
			}
		}
	}
	want := map[string]int{"bookstore": 2, "bookstore-v1": 1, "bookstore-v2": 1, "bookwarehouse": 1}
	if !maps.Equal(selected, want) {
		t.Errorf("services select this many workloads: %v, want %v", selected, want)
	}
}

func TestTargetsLeadSomewhere(t *testing.T) {
	all := demo(t)
	matches := map[string][]string{} // names of matches by route group
	for _, group := range of[specsv1alpha4.HTTPRouteGroup](t, all, "specs.smi-spec.io/v1alpha4", "HTTPRouteGroup") {
		for _, match := range group.Spec.Matches {
			key := group.Namespace + "/" + group.Name
			matches[key] = append(matches[key], match.Name)
		}
	}
	var grants []string
	for _, target := range of[accessv1alpha3.TrafficTarget](t, parse(t, manifests.Targets), "access.smi-spec.io/v1alpha3", "TrafficTarget") {
		to := target.Spec.Destination
		if to.Namespace != target.Namespace {
			t.Errorf("%s: the destination is in namespace %s, not its own", target.Name, to.Namespace)
		}
		for _, account := range append(target.Spec.Sources, to) {
			if account.Kind != "ServiceAccount" || !all.has("ServiceAccount", account.Namespace, account.Name) {
				t.Errorf("%s: there is no account %v", target.Name, account)
			}
		}
		for _, rule := range target.Spec.Rules {
			for _, match := range rule.Matches {
				if !slices.Contains(matches[target.Namespace+"/"+rule.Name], match) {
					t.Errorf("%s: route group %s has no match %s", target.Name, rule.Name, match)
				}
			}
			for _, from := range target.Spec.Sources {
				grants = append(grants, from.Name+" > "+to.Name+": "+strings.Join(rule.Matches, ", "))
			}
		}
	}
	want := []string{
		"bookbuyer > bookstore-v1: buy-a-book, books-bought",
		"bookbuyer > bookstore-v2: buy-a-book, books-bought",
		"bookstore-v1 > bookwarehouse: restock-books",
		"bookstore-v2 > bookwarehouse: restock-books",
	}
	if !slices.Equal(grants, want) {
		t.Errorf("allowed is %q, want %q", grants, want)
	}
}

func TestSplitsAreOneObjectWithTwoShares(t *testing.T) {
	all := demo(t)
	names := map[string]bool{}
	for text, want := range map[string][]int{manifests.SplitEven: {50, 50}, manifests.SplitShifted: {10, 90}} {
		split := of[splitv1alpha2.TrafficSplit](t, parse(t, text), "split.smi-spec.io/v1alpha2", "TrafficSplit")[0]
		names[split.Namespace+"/"+split.Name] = true
		var weights []int
		for _, backend := range split.Spec.Backends {
			weight, ok := backend.Weight.Value()
			if !ok {
				t.Errorf("backend %s has weight %s", backend.Service, backend.Weight)
			}
			weights = append(weights, int(weight))
			if !all.has("Service", split.Namespace, backend.Service) {
				t.Errorf("there is no service %s", backend.Service)
			}
		}
		if !slices.Equal(weights, want) || !all.has("Service", split.Namespace, split.Spec.Service) {
			t.Errorf("split of %s by %v, want one of an existing service by %v", split.Spec.Service, weights, want)
		}
	}
	if len(names) != 1 {
		t.Errorf("the splits are different objects: %v", names)
	}
}

func TestNamespacesSpeakOSM(t *testing.T) {
	for _, namespace := range of[corev1.Namespace](t, demo(t), "v1", "Namespace") {
		if namespace.Labels["openservicemesh.io/monitored-by"] != "osm" ||
			namespace.Annotations["openservicemesh.io/sidecar-injection"] != "enabled" {
			t.Errorf("%s is not in the mesh: %v, %v", namespace.Name, namespace.Labels, namespace.Annotations)
		}
	}
}

// TestProgramKnowsItsArguments runs the real program with what the manifests
// tell it, asking it for help only.
func TestProgramKnowsItsArguments(t *testing.T) {
	program := filepath.Join(t.TempDir(), "bookstore")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, "../../bookstore").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	for name, pod := range templates(t, demo(t)) {
		container := pod.Spec.Containers[0]
		if container.Image != "${IMAGE:bookstore}" || container.ImagePullPolicy != corev1.PullIfNotPresent {
			t.Errorf("%s: image %s, %s", name, container.Image, container.ImagePullPolicy)
		}
		out, err := exec.CommandContext(t.Context(), program, append(slices.Clone(container.Args), "--help")...).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "bookstore "+container.Args[0]) {
			t.Errorf("%s: arguments %v: %v\n%s", name, container.Args, err, out)
		}
	}
}
