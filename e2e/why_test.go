//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os/exec"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/outrigger-mesh/outrigger/e2e/harness"
	"github.com/outrigger-mesh/outrigger/e2e/questions"
	"github.com/outrigger-mesh/outrigger/internal/manifest"
	"github.com/outrigger-mesh/outrigger/internal/why"
)

// TestWhyTellsWhatProxiesDo asks `outrigger why` every question of the table, makes
// the call, and compares. Then it makes the changes that the answers propose: each
// must let its call through.
func TestWhyTellsWhatProxiesDo(t *testing.T) {
	t.Parallel()
	stories, err := questions.Stories(prefix + "why-")
	if err != nil {
		t.Fatal(err)
	}
	for _, story := range stories {
		t.Run(story.Name, func(t *testing.T) {
			t.Parallel()
			setStory(t, story)
			for _, c := range story.Calls {
				t.Run(c.Name, func(t *testing.T) { compareWhy(t, c) })
			}
			for _, c := range story.Calls {
				if c.Change {
					t.Run(c.Name+", changed", func(t *testing.T) { followWhy(t, story, c) })
				}
			}
		})
	}
}

// setStory creates a story's objects, waits until its pods are ready, and removes it
// all when the test has ended.
func setStory(t *testing.T, s questions.Story) {
	t.Helper()
	objects, err := manifest.Parse([]byte(s.Objects), "default")
	if err != nil {
		t.Fatal(err)
	}
	pods := map[string]int{}
	for _, n := range objects.Namespaces {
		pods[n.Name] = 0
	}
	for _, p := range objects.Pods {
		pods[p.Namespace]++
	}
	for _, p := range objects.Templates {
		pods[p.Namespace]++
	}
	namespaces := slices.Sorted(maps.Keys(pods))
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		if t.Failed() {
			t.Log(cluster.Report(ctx, namespaces...))
		}
		for _, name := range namespaces {
			ns := &corev1.Namespace{}
			ns.Name = name
			if err := client.IgnoreNotFound(cluster.Client.Delete(ctx, ns)); err != nil {
				t.Error(err)
			}
		}
	})
	apply(t, "%s", s.Objects)
	for _, ns := range namespaces {
		if _, err := cluster.Ready(t.Context(), ns, "", pods[ns]); err != nil {
			t.Fatal(err)
		}
	}
}

// askWhy returns the answer of the command line.
func askWhy(ctx context.Context, c questions.Call) (why.CallAnswer, error) {
	text, err := cluster.CLI(ctx, append(append([]string{"why"}, c.Args()...), "--output", "json")...)
	var a why.CallAnswer
	status := 0
	if err != nil {
		var ended *exec.ExitError
		if !errors.As(err, &ended) {
			return a, err
		}
		status = ended.ExitCode()
	}
	if err := json.Unmarshal([]byte(text), &a); err != nil {
		return a, fmt.Errorf("read the answer (status %d): %w\n%s", status, err, text)
	}
	if status > 1 || (status == 0) != (a.Verdict == why.Allowed) {
		return a, fmt.Errorf("%s ends with status %d; want 0 for allowed, or else 1", a.Verdict, status)
	}
	return a, nil
}

// compareWhy compares the table, the command line and the proxies.
func compareWhy(t *testing.T, c questions.Call) {
	t.Helper()
	eventually(t, func(ctx context.Context) error {
		a, err := askWhy(ctx, c)
		if err != nil {
			return err
		}
		if a.Verdict != c.Verdict || a.Side != c.Side || a.Reason != c.Reason || !slices.Equal(questions.Servers(a), c.Servers) {
			return fmt.Errorf("why says %s at %q, %s, by %v; want %s at %q, %s, by %v\n%s",
				a.Verdict, a.Side, a.Reason, questions.Servers(a), c.Verdict, c.Side, c.Reason, c.Servers, a.Text())
		}
		return nil
	})
	eventually(t, func(ctx context.Context) error { return happens(ctx, c, c.Verdict != why.Denied, c.Status, c.Servers) })
}

// happens makes a call, often enough to meet every server, and returns an error unless
// all statuses and servers were met and no others.
func happens(ctx context.Context, c questions.Call, answered bool, statuses []int, servers []string) error {
	from, err := podOf(ctx, c)
	if err != nil {
		return err
	}
	if c.TCP() {
		received, end, err := cluster.Connect(ctx, from, c.Address(), "--send", "hello", "--expect", questions.Banner, "--timeout", "3s")
		if err != nil {
			return err
		}
		if strings.Contains(received, questions.Banner) != answered {
			return fmt.Errorf("the connection received %q (%s); answered should be %t", received, end, answered)
		}
		return nil
	}
	flags := []string{"--method", c.Method}
	if c.Method == "" {
		flags[1] = "GET"
	}
	for _, h := range c.Headers {
		flags = append(flags, "--header", h)
	}
	times := 1
	if len(statuses) > 1 || len(servers) > 1 {
		times = 30
	}
	gotStatuses, gotServers := map[int]bool{}, map[string]bool{}
	for range times {
		answer, err := cluster.Call(ctx, from, c.URL, flags...)
		if err != nil {
			return err
		}
		gotStatuses[answer.Status] = true
		if answer.Status == 200 {
			gotServers[answer.Identity] = true
		}
		if !slices.Contains(statuses, answer.Status) {
			return fmt.Errorf("answered %d; want %v: %s", answer.Status, statuses, answer.Refusal+answer.Error)
		}
	}
	if got := slices.Sorted(maps.Keys(gotStatuses)); !slices.Equal(got, statuses) {
		return fmt.Errorf("answered %v; want %v", got, statuses)
	}
	// What is not in the mesh has no name that why could tell.
	if got := slices.Sorted(maps.Keys(gotServers)); len(servers) > 0 && !slices.Equal(got, servers) {
		return fmt.Errorf("answered by %v; want %v", got, servers)
	}
	return nil
}

// podOf returns the pod that makes a call.
func podOf(ctx context.Context, c questions.Call) (corev1.Pod, error) {
	namespace, name, labelled := c.Pod()
	if labelled {
		pods, err := cluster.Ready(ctx, namespace, "app="+name, 1)
		if err != nil {
			return corev1.Pod{}, err
		}
		return pods[0], nil
	}
	var pod corev1.Pod
	err := cluster.Client.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, &pod)
	return pod, err
}

// followWhy makes the change that an answer proposes, and takes it back.
func followWhy(t *testing.T, story questions.Story, c questions.Call) {
	t.Helper()
	a, err := askWhy(t.Context(), c)
	if err != nil || a.Change == nil {
		t.Fatalf("nothing is proposed: %v\n%s", err, a.Text())
	}
	undo := change(t, *a.Change)
	eventually(t, func(ctx context.Context) error { return happens(ctx, c, true, []int{200}, nil) })
	if again, err := askWhy(t.Context(), c); err != nil || again.Verdict != why.Allowed {
		t.Errorf("after the change why says %s (%v)\n%s", again.Verdict, err, again.Text())
	}
	undo()
	restore(t, story)
	eventually(t, func(ctx context.Context) error { return happens(ctx, c, c.Verdict != why.Denied, c.Status, c.Servers) })
}

// restore makes a story's objects what they were, but for its pods: they run, with
// what injection made of them.
func restore(t *testing.T, s questions.Story) {
	t.Helper()
	objects, err := cluster.Objects(s.Objects)
	if err == nil {
		objects = slices.DeleteFunc(objects, func(o *unstructured.Unstructured) bool { return o.GetKind() == "Pod" })
		err = cluster.ApplyObjects(t.Context(), objects...)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// change makes a change. What undo leaves, the story's own objects put right.
func change(t *testing.T, c why.Change) (undo func()) {
	t.Helper()
	switch {
	case c.Command != "":
		a, err := questions.ReadCommand(c.Command)
		if err != nil {
			t.Fatal(err)
		}
		if a.Remove {
			setAnnotation(t, a, nil)
		} else {
			setAnnotation(t, a, a.Value)
		}
		return func() { setAnnotation(t, a, nil) }
	case len(c.Sources) == 0:
		apply(t, "%s", c.YAML)
		return func() {
			if err := cluster.Delete(t.Context(), c.YAML); err != nil {
				t.Fatal(err)
			}
		}
	}
	entry, err := questions.ReadSources(c)
	if err != nil {
		t.Fatal(err)
	}
	for _, source := range c.Sources {
		addSource(t, strings.TrimPrefix(source, "TrafficTarget "), map[string]any{
			"kind": entry[0].Kind, "name": entry[0].Name, "namespace": entry[0].Namespace,
		})
	}
	return func() {}
}

func setAnnotation(t *testing.T, a questions.Annotation, value any) {
	t.Helper()
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]any{a.Key: value}}})
	if err != nil {
		t.Fatal(err)
	}
	object := &unstructured.Unstructured{}
	object.SetGroupVersionKind(schema.GroupVersionKind{Version: "v1", Kind: map[string]string{"namespace": "Namespace", "service": "Service"}[a.Kind]})
	object.SetNamespace(a.Namespace)
	object.SetName(a.Name)
	if err := cluster.Client.Patch(t.Context(), object, client.RawPatch("application/merge-patch+json", patch)); err != nil {
		t.Fatal(err)
	}
}

// addSource lets another account call by a TrafficTarget, "namespace/name".
func addSource(t *testing.T, target string, source map[string]any) {
	t.Helper()
	namespace, name, _ := strings.Cut(target, "/")
	err := harness.Eventually(t.Context(), patience, func(ctx context.Context) error {
		object := &unstructured.Unstructured{}
		object.SetGroupVersionKind(schema.GroupVersionKind{Group: "access.smi-spec.io", Version: "v1alpha3", Kind: "TrafficTarget"})
		if err := cluster.Client.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, object); err != nil {
			return err
		}
		sources, _, err := unstructured.NestedSlice(object.Object, "spec", "sources")
		if err != nil {
			return err
		}
		if err := unstructured.SetNestedSlice(object.Object, append(sources, source), "spec", "sources"); err != nil {
			return err
		}
		return cluster.Client.Update(ctx, object)
	})
	if err != nil {
		t.Fatal(err)
	}
}
