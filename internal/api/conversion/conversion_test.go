package conversion

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

func object(t *testing.T, text string) *unstructured.Unstructured {
	t.Helper()
	raw, err := yaml.YAMLToJSONStrict([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	o := &unstructured.Unstructured{}
	if err := o.UnmarshalJSON(raw); err != nil {
		t.Fatal(err)
	}
	return o
}

func TestConvert(t *testing.T) {
	cases := map[string]struct{ from, to string }{
		"a TrafficTarget of the first version": {
			from: `
apiVersion: access.smi-spec.io/v1alpha1
kind: TrafficTarget
metadata: {name: a, namespace: shop, labels: {of: web}, annotations: {by: me}}
destination: {kind: ServiceAccount, name: store, namespace: shop, port: 8080}
specs: [{kind: HTTPRouteGroup, name: routes, matches: [buy]}]
sources: [{kind: ServiceAccount, name: buyer, namespace: front}]
status: {conditions: []}`,
			to: `
apiVersion: access.smi-spec.io/v1alpha3
kind: TrafficTarget
metadata: {name: a, namespace: shop, labels: {of: web}, annotations: {by: me, outrigger.dev/destination-port: "8080"}}
spec:
  destination: {kind: ServiceAccount, name: store, namespace: shop}
  rules: [{kind: HTTPRouteGroup, name: routes, matches: [buy]}]
  sources: [{kind: ServiceAccount, name: buyer, namespace: front}]
status: {conditions: []}`,
		},
		"a TrafficTarget of the second version": {
			from: `
apiVersion: access.smi-spec.io/v1alpha2
kind: TrafficTarget
metadata: {name: a}
spec:
  destination: {kind: ServiceAccount, name: store, port: 3306}
  rules: [{kind: TCPRoute, name: mysql}]
  sources: []`,
			to: `
apiVersion: access.smi-spec.io/v1alpha3
kind: TrafficTarget
metadata: {name: a, annotations: {outrigger.dev/destination-port: "3306"}}
spec:
  destination: {kind: ServiceAccount, name: store}
  rules: [{kind: TCPRoute, name: mysql}]
  sources: []`,
		},
		"between two versions that are not read": {
			from: `
apiVersion: access.smi-spec.io/v1alpha1
kind: TrafficTarget
metadata: {name: a}
destination: {kind: ServiceAccount, name: store, port: 80}
specs: []
sources: []`,
			to: `
apiVersion: access.smi-spec.io/v1alpha2
kind: TrafficTarget
metadata: {name: a}
spec:
  destination: {kind: ServiceAccount, name: store, port: 80}
  rules: []
  sources: []`,
		},
		"an annotation that is no port stays": {
			from: `
apiVersion: access.smi-spec.io/v1alpha3
kind: TrafficTarget
metadata: {name: a, annotations: {outrigger.dev/destination-port: http}}
spec: {destination: {kind: ServiceAccount, name: store}, rules: [], sources: []}`,
			to: `
apiVersion: access.smi-spec.io/v1alpha1
kind: TrafficTarget
metadata: {name: a, annotations: {outrigger.dev/destination-port: http}}
destination: {kind: ServiceAccount, name: store}
specs: []
sources: []`,
		},
		"a HTTPRouteGroup of the first version": {
			from: `
apiVersion: specs.smi-spec.io/v1alpha1
kind: HTTPRouteGroup
metadata: {name: a}
matches: [{name: buy, pathRegex: /buy, methods: ["*"]}, {name: user, headers: [{user-agent: ".*Android.*"}, {host: shop}]}]`,
			to: `
apiVersion: specs.smi-spec.io/v1alpha4
kind: HTTPRouteGroup
metadata: {name: a}
spec:
  matches: [{name: buy, pathRegex: /buy, methods: ["*"]}, {name: user, headers: [{user-agent: ".*Android.*"}, {host: shop}]}]`,
		},
		"a HTTPRouteGroup of the second version, for a reader of the third": {
			from: "{apiVersion: specs.smi-spec.io/v1alpha2, kind: HTTPRouteGroup, metadata: {name: a}, matches: []}",
			to:   "{apiVersion: specs.smi-spec.io/v1alpha3, kind: HTTPRouteGroup, metadata: {name: a}, spec: {matches: []}}",
		},
		"a TCPRoute that says nothing": {
			from: "{apiVersion: specs.smi-spec.io/v1alpha1, kind: TCPRoute, metadata: {name: a}}",
			to:   "{apiVersion: specs.smi-spec.io/v1alpha4, kind: TCPRoute, metadata: {name: a, annotations: {outrigger.dev/tcp-route-ports: destination}}}",
		},
		"a TCPRoute of the third version": {
			from: "{apiVersion: specs.smi-spec.io/v1alpha3, kind: TCPRoute, metadata: {name: a, annotations: {b: c}}, spec: {}}",
			to:   "{apiVersion: specs.smi-spec.io/v1alpha4, kind: TCPRoute, metadata: {name: a, annotations: {b: c, outrigger.dev/tcp-route-ports: destination}}, spec: {}}",
		},
		"a TCPRoute that opens nothing": {
			from: "{apiVersion: specs.smi-spec.io/v1alpha4, kind: TCPRoute, metadata: {name: a}, spec: {matches: {ports: []}}}",
			to:   "{apiVersion: specs.smi-spec.io/v1alpha1, kind: TCPRoute, metadata: {name: a}, spec: {matches: {ports: []}}}",
		},
		"a TCPRoute with ports": {
			from: "{apiVersion: specs.smi-spec.io/v1alpha4, kind: TCPRoute, metadata: {name: a}, spec: {matches: {name: b, ports: [3306]}}}",
			to:   "{apiVersion: specs.smi-spec.io/v1alpha2, kind: TCPRoute, metadata: {name: a}, spec: {matches: {name: b, ports: [3306]}}}",
		},
		"a TrafficSplit": {
			from: "{apiVersion: split.smi-spec.io/v1alpha1, kind: TrafficSplit, metadata: {name: a}, spec: {service: web, backends: [{service: v1, weight: 9}]}}",
			to:   "{apiVersion: split.smi-spec.io/v1alpha4, kind: TrafficSplit, metadata: {name: a}, spec: {service: web, backends: [{service: v1, weight: 9}]}}",
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			from, want := object(t, c.from), object(t, c.to)
			before := from.DeepCopy()
			got, err := Convert(from, want.GroupVersionKind().Version)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(want.Object, got.Object); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
			back, err := Convert(got, from.GroupVersionKind().Version)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(before.Object, back.Object); d != "" {
				t.Errorf("lost on the way there and back (-before +after):\n%s", d)
			}
			if d := cmp.Diff(before.Object, from.Object); d != "" {
				t.Errorf("Convert changed its input:\n%s", d)
			}
		})
	}
}

func TestConvertRefuses(t *testing.T) {
	cases := map[string]struct{ object, to, says string }{
		"two ports": {
			object: "{apiVersion: access.smi-spec.io/v1alpha2, kind: TrafficTarget, metadata: {name: a, namespace: shop, annotations: {outrigger.dev/destination-port: '80'}}, spec: {destination: {port: 81}}}",
			to:     "v1alpha3", says: `convert TrafficTarget shop/a from v1alpha2 to v1alpha3: the destination's port is 81, and the annotation outrigger.dev/destination-port is "80"`,
		},
		"a name for a port": {
			object: "{apiVersion: access.smi-spec.io/v1alpha1, kind: TrafficTarget, metadata: {name: a}, destination: {port: http}}",
			to:     "v1alpha3", says: "a number from 1 to 65535",
		},
		"a port out of range": {
			object: "{apiVersion: access.smi-spec.io/v1alpha1, kind: TrafficTarget, metadata: {name: a}, destination: {port: 65536}}",
			to:     "v1alpha3", says: "a number from 1 to 65535",
		},
		"rules among specs": {
			object: "{apiVersion: access.smi-spec.io/v1alpha3, kind: TrafficTarget, metadata: {name: a}, spec: {rules: [], specs: []}}",
			to:     "v1alpha1", says: "has no field specs",
		},
		"fields that nobody knows": {
			object: "{apiVersion: specs.smi-spec.io/v1alpha4, kind: HTTPRouteGroup, metadata: {name: a}, spec: {matches: [], extra: 1}}",
			to:     "v1alpha1", says: "no field for spec.extra",
		},
		"a field twice": {
			object: "{apiVersion: specs.smi-spec.io/v1alpha4, kind: HTTPRouteGroup, metadata: {name: a}, spec: {matches: []}, matches: []}",
			to:     "v1alpha1", says: "twice",
		},
		"a spec that is none": {
			object: "{apiVersion: specs.smi-spec.io/v1alpha4, kind: HTTPRouteGroup, metadata: {name: a}, spec: no}",
			to:     "v1alpha1", says: "not an object",
		},
		"another kind": {
			object: "{apiVersion: v1, kind: Pod, metadata: {name: a}}", to: "v2", says: "Pod is not a kind of SMI's",
		},
		"another version": {
			object: "{apiVersion: access.smi-spec.io/v1alpha3, kind: TrafficTarget, metadata: {name: a}}", to: "v1alpha4",
			says: `no version "v1alpha4"; there are v1alpha1, v1alpha2, v1alpha3`,
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if got, err := Convert(object(t, c.object), c.to); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, %v; want the error %q", got, err, c.says)
			}
		})
	}
}

// FuzzConvert wants whatever can be said in another version to come back as it
// was, except for what two ways of writing mean alike.
func FuzzConvert(f *testing.F) {
	for _, kind := range []string{"access.smi-spec.io|TrafficTarget", "specs.smi-spec.io|HTTPRouteGroup", "specs.smi-spec.io|TCPRoute", "split.smi-spec.io|TrafficSplit"} {
		group, name, _ := strings.Cut(kind, "|")
		for _, body := range []string{
			`"destination":{"port":80},"specs":[],"sources":[{}]`,
			`"spec":{"destination":{"port":80},"rules":[{"a":1}]}`,
			`"metadata":{"annotations":{"outrigger.dev/destination-port":"80","b":"c"}},"spec":{"destination":{},"rules":[],"sources":[]}`,
			`"metadata":{"annotations":{"outrigger.dev/destination-port":"080"}},"spec":{"destination":{}}`,
			`"matches":[{"name":"a","headers":[{"b":"c"}]}]`,
			`"spec":{"matches":[1.5,null]},"status":{}`,
			`"spec":null`,
		} {
			for _, from := range []byte("1234") {
				f.Add(group, name, from, byte('3'), body)
			}
		}
	}
	f.Fuzz(func(t *testing.T, group, name string, from, to byte, body string) {
		text, err := json.Marshal(map[string]string{"apiVersion": group + "/v1alpha" + string(from), "kind": name})
		if err != nil {
			return
		}
		o := &unstructured.Unstructured{}
		if o.UnmarshalJSON([]byte(strings.TrimSuffix(string(text), "}")+","+body+"}")) != nil {
			return
		}
		there, err := Convert(o, "v1alpha"+string(to))
		if err != nil {
			return
		}
		if raw, err := there.MarshalJSON(); err != nil || (&unstructured.Unstructured{}).UnmarshalJSON(raw) != nil {
			t.Fatalf("what came out is no object: %s, %v", raw, err)
		}
		back, err := Convert(there, o.GroupVersionKind().Version)
		if err != nil {
			t.Fatalf("it cannot come back: %v\n%v", err, there.Object)
		}
		if d := cmp.Diff(plain(o), plain(back)); d != "" {
			t.Errorf("lost on the way there and back (-before +after):\n%s", d)
		}
	})
}

// plain returns an object with one way of writing for what means the same: a
// destination's port as a field, ports as a list, and other lists and maps that are
// empty left out.
func plain(o *unstructured.Unstructured) map[string]any {
	out := o.DeepCopy().Object
	spec, _ := out["spec"].(map[string]any)
	for _, level := range []map[string]any{out, spec} {
		if destination, ok := level["destination"].(map[string]any); ok && o.GetKind() == "TrafficTarget" && !strings.HasSuffix(o.GetAPIVersion(), "v1alpha3") {
			holder := &unstructured.Unstructured{Object: map[string]any{"metadata": out["metadata"], "spec": map[string]any{"destination": destination}}}
			_ = writePort(holder)
		}
		for _, list := range []string{"specs", "rules", "sources"} {
			if l, ok := level[list].([]any); ok && len(l) == 0 || level[list] == nil {
				delete(level, list)
			}
		}
	}
	if o.GetKind() == "TCPRoute" {
		_ = unmarkPorts(&unstructured.Unstructured{Object: out})
	}
	for _, empty := range []string{"spec", "metadata"} {
		if m, ok := out[empty].(map[string]any); ok && len(m) == 0 || out[empty] == nil {
			delete(out, empty)
		}
	}
	return out
}
