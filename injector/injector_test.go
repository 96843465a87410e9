package injector

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	jsonpatchapply "github.com/evanphx/json-patch/v5"
	"github.com/google/go-cmp/cmp"
	"gomodules.xyz/jsonpatch/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"sigs.k8s.io/yaml"

	"github.com/outrigger-mesh/outrigger/internal/annotation"
	"github.com/outrigger-mesh/outrigger/internal/golden"
)

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(golden.CheckStale(m, "testdata"))
}

// settings are the chart's defaults, more or less.
func settings() Settings {
	return Settings{
		Mesh: "outrigger", TrustDomain: "cluster.local",
		ControlPlane: "outriggerd.outrigger-system.svc:15128", ControlPlaneID: "spiffe://cluster.local/ns/outrigger-system/sa/outriggerd",
		SystemNamespace: "outrigger-system", OSMMesh: "osm",
		InitImage: "example.com/outrigger-init:v1", ProxyImage: "example.com/outrigger-proxy:v1",
		Resources: Resources{CPU: resource.MustParse("10m"), Memory: resource.MustParse("64Mi"), MemoryLimit: resource.MustParse("256Mi")},
	}
}

// A testCase is a folder of testdata: namespace.yaml and pod.yaml as a user would
// write them, and settings.yaml where they are not the usual ones.
type testCase struct {
	dir       string
	namespace Namespace
	raw       []byte // the pod, as JSON
	settings  Settings
}

func load(t testing.TB, dir string) testCase {
	t.Helper()
	tc := testCase{dir: dir, settings: settings()}
	var ns corev1.Namespace
	if err := yaml.UnmarshalStrict(read(t, dir, "namespace.yaml"), &ns); err != nil {
		t.Fatalf("namespace.yaml: %v", err)
	}
	tc.namespace = Namespace{Name: ns.Name, Labels: ns.Labels, Annotations: ns.Annotations}
	raw, err := yaml.YAMLToJSON(read(t, dir, "pod.yaml"))
	if err != nil {
		t.Fatalf("pod.yaml: %v", err)
	}
	tc.raw = raw
	if text, err := os.ReadFile(filepath.Join(dir, "settings.yaml")); err == nil {
		if err := yaml.UnmarshalStrict(text, &tc.settings); err != nil {
			t.Fatalf("settings.yaml: %v", err)
		}
	}
	if err := tc.settings.Validate(); err != nil {
		t.Fatalf("settings: %v", err)
	}
	return tc
}

// inject runs the whole package on a pod as the webhook would.
func (tc testCase) inject(t testing.TB, raw []byte) (Verdict, []jsonpatch.Operation) {
	t.Helper()
	pod := decode(t, raw)
	before := pod.DeepCopy()
	verdict, ops := Inject(Request{Namespace: tc.namespace, Match: MatchNamespace(tc.namespace, tc.settings), Pod: pod}, tc.settings)
	if diff := cmp.Diff(before, pod); diff != "" {
		t.Errorf("Inject changed its input (-before +after):\n%s", diff)
	}
	return verdict, ops
}

func TestGolden(t *testing.T) {
	dirs, err := filepath.Glob("testdata/*/pod.yaml")
	if err != nil || len(dirs) < 25 {
		t.Fatalf("found %d cases (%v), want at least 25", len(dirs), err)
	}
	for _, file := range dirs {
		dir := filepath.Dir(file)
		t.Run(filepath.Base(dir), func(t *testing.T) {
			tc := load(t, dir)
			verdict, ops := tc.inject(t, tc.raw)
			golden.Compare(t, filepath.Join(dir, "verdict.golden"), describe(verdict))
			if verdict.Outcome != Injected {
				if len(ops) != 0 {
					t.Errorf("%s, but there are operations: %v", verdict.Outcome, ops)
				}
				return
			}
			patch := encode(t, ops)
			golden.Compare(t, filepath.Join(dir, "patch.golden.json"), indent(t, patch))
			pod := apply(t, tc.raw, patch)
			golden.Compare(t, filepath.Join(dir, "pod.golden.yaml"), toYAML(t, pod))
			if errs := annotation.CheckPod(decode(t, pod).Annotations); len(errs) != 0 {
				t.Errorf("the injected pod would not be let in: %v", errs)
			}
			tc.checkAgain(t, pod)
			tc.checkForeign(t)
			tc.checkRemoved(t, pod)
		})
	}
}

// checkAgain wants no operation for a pod that has its sidecar.
func (tc testCase) checkAgain(t *testing.T, injected []byte) {
	t.Helper()
	verdict, ops := tc.inject(t, injected)
	if verdict.Outcome != Injected || len(ops) != 0 {
		t.Errorf("injected again: %v %s\n%s", verdict, encode(t, ops), injected)
	}
}

// checkForeign adds fields that this build has not heard of everywhere, and wants
// them to be where they were.
func (tc testCase) checkForeign(t *testing.T) {
	t.Helper()
	if find(decode(t, tc.raw)).present() {
		return // what is ours is ours to replace
	}
	pod := parse(t, tc.raw)
	want := mark(pod)
	marked, err := json.Marshal(pod)
	if err != nil {
		t.Fatal(err)
	}
	_, ops := tc.inject(t, marked)
	got := 0
	count(parse(t, apply(t, marked, encode(t, ops))), &got)
	if got != want {
		t.Errorf("of %d foreign fields %d are left", want, got)
	}
}

const foreignField = "x-unknown"

// mark adds a foreign field to every object in v, and returns how many. It leaves
// out maps of strings, and the parts of a probe that a rewrite replaces.
func mark(v any) int {
	n := 0
	switch v := v.(type) {
	case map[string]any:
		for key, value := range v {
			switch key {
			case "labels", "annotations", "nodeSelector", "limits", "requests", "tcpSocket", "grpc", "httpHeaders":
				continue
			}
			n += mark(value)
		}
		v[foreignField] = map[string]any{"deep": true}
		n++
	case []any:
		for _, item := range v {
			n += mark(item)
		}
	}
	return n
}

func count(v any, n *int) {
	switch v := v.(type) {
	case map[string]any:
		for key, value := range v {
			if key == foreignField {
				*n++
				continue
			}
			count(value, n)
		}
	case []any:
		for _, item := range v {
			count(item, n)
		}
	}
}

// checkRemoved wants the pod as it was when the sidecar is taken out. A pod that
// came with a sidecar ends as what it was before that.
func (tc testCase) checkRemoved(t *testing.T, injected []byte) {
	t.Helper()
	pod := decode(t, injected)
	before := pod.DeepCopy()
	got := apply(t, injected, encode(t, Remove(pod)))
	if diff := cmp.Diff(before, pod); diff != "" {
		t.Errorf("Remove changed its input (-before +after):\n%s", diff)
	}
	if find(decode(t, tc.raw)).present() {
		if find(decode(t, got)).present() {
			t.Error("the sidecar is still there after Remove")
		}
		return
	}
	if diff := cmp.Diff(parse(t, tc.raw), parse(t, got)); diff != "" {
		t.Errorf("Remove does not undo Patch (-was +is):\n%s", diff)
	}
}

func describe(v Verdict) []byte {
	text := fmt.Sprintf("%s %s\n%s\n", v.Outcome, v.Reason, v.Message)
	if v.Surprising {
		text += "surprising\n"
	}
	return []byte(text)
}

func read(t testing.TB, dir, file string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func decode(t testing.TB, raw []byte) *corev1.Pod {
	t.Helper()
	var pod corev1.Pod
	if err := json.Unmarshal(raw, &pod); err != nil {
		t.Fatalf("decode pod: %v", err)
	}
	return &pod
}

func parse(t testing.TB, raw []byte) any {
	t.Helper()
	var v any
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatalf("parse %s: %v", raw, err)
	}
	return v
}

func encode(t testing.TB, ops []jsonpatch.Operation) []byte {
	t.Helper()
	if ops == nil {
		ops = []jsonpatch.Operation{}
	}
	text, err := json.Marshal(ops)
	if err != nil {
		t.Fatalf("encode patch: %v", err)
	}
	return text
}

func apply(t testing.TB, raw, patch []byte) []byte {
	t.Helper()
	p, err := jsonpatchapply.DecodePatch(patch)
	if err != nil {
		t.Fatalf("decode patch: %v", err)
	}
	out, err := p.Apply(raw)
	if err != nil {
		t.Fatalf("apply patch: %v\n%s\nto %s", err, patch, raw)
	}
	return out
}

func indent(t testing.TB, raw []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := json.Indent(&out, raw, "", "  "); err != nil {
		t.Fatal(err)
	}
	out.WriteByte('\n')
	return out.Bytes()
}

func toYAML(t testing.TB, raw []byte) []byte {
	t.Helper()
	out, err := yaml.JSONToYAML(raw)
	if err != nil {
		t.Fatal(err)
	}
	return out
}
