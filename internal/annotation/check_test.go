package annotation

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestDocument holds docs/annotations.md to the registry.
func TestDocument(t *testing.T) {
	page, err := os.ReadFile("../../docs/annotations.md")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(page), Document()); diff != "" {
		t.Errorf("docs/annotations.md is stale; make generate writes it (-it is +it would be):\n%s", diff)
	}
}

// TestKeysAreWhole holds each entry to what readers and checks need of it.
func TestKeysAreWhole(t *testing.T) {
	type at struct {
		name string
		on   Place
	}
	seen := map[at]bool{}
	for _, k := range Keys() {
		for what, text := range map[string]string{
			"name": k.Name, "places": k.On.String(), "type": k.Type, "default": k.Default,
			"allowed values": k.Allowed, "effect": k.Effect, "what a bad value comes to": k.Otherwise,
		} {
			if text == "" || strings.Contains(text, "\n") {
				t.Errorf("%s: %s: %q; want one line", k.Name, what, text)
			}
		}
		if k.Valid == nil {
			t.Errorf("%s: nothing says which values are valid", k.Name)
		}
		for _, on := range []Place{Namespace, Service, Pod} {
			for _, name := range k.names() {
				if k.On&on != 0 && seen[at{name, on}] {
					t.Errorf("%s on a %s: two entries", name, on)
				}
				seen[at{name, on}] = k.On&on != 0 || seen[at{name, on}]
			}
		}
	}
}

func TestCheck(t *testing.T) {
	cases := map[string]struct {
		reason      string
		check       func(map[string]string) []error
		annotations map[string]string
		want        []string
	}{
		"Nothing":  {reason: "most objects say nothing", check: CheckPod},
		"Foreign":  {reason: "other people's keys are their business", check: CheckNamespace, annotations: map[string]string{"istio.io/rev": "", "app.outrigger.dev/x": "y"}},
		"AllRight": {reason: "what is allowed passes", check: CheckNamespace, annotations: map[string]string{TrafficPolicy: "Enforced", Egress: "deny", OSMInject: "yes"}},
		"BadValues": {
			reason: "each is named, in the order of the keys", check: CheckNamespace, annotations: map[string]string{TrafficPolicy: "on", Egress: "no", MTLS: "strict"},
			want: []string{
				`namespace annotation outrigger.dev/egress: "no" is not allowed; use allow or deny`,
				`namespace annotation outrigger.dev/traffic-policy: "on" is not allowed; use permissive or enforced`,
			},
		},
		"WrongPlace": {
			reason: "a setting that changes nothing is a mistake", check: CheckService, annotations: map[string]string{ProxyCPU: "50m"},
			want: []string{`service annotation outrigger.dev/proxy-cpu has no effect on a service; use it on a pod`},
		},
		"LabelAsAnnotation": {
			reason: "the API server's selectors read the label only", check: CheckNamespace, annotations: map[string]string{Inject: "enabled"},
			want: []string{`namespace annotation outrigger.dev/inject has no effect as an annotation; use a label of that name`},
		},
		"TypingError": {
			reason: "it must not silently do nothing", check: CheckPod, annotations: map[string]string{"outrigger.dev/proxy-cpus": "50m"},
			want: []string{`pod annotation outrigger.dev/proxy-cpus is not known; use outrigger.dev/proxy-cpu, the nearest key that is`},
		},
		"NothingNear": {
			reason: "a bad guess is worse than none", check: CheckPod, annotations: map[string]string{"outrigger.dev/wobble": "yes"},
			want: []string{`pod annotation outrigger.dev/wobble is not known; use a key of docs/annotations.md`},
		},
		"OnlyThePrefix": {
			reason: "a key without a name is none", check: CheckPod, annotations: map[string]string{Prefix: ""},
			want: []string{`pod annotation outrigger.dev/ is not known; use a key of docs/annotations.md`},
		},
		"OSMAlias": {
			reason: "OSM's names are held to the same values", check: CheckPod, annotations: map[string]string{OSMExcludeInboundPorts: "http"},
			want: []string{`pod annotation openservicemesh.io/inbound-port-exclusion-list: "http" is not allowed; use ports from 1 to 65535 without the mesh's own, 15000 to 15020, separated by commas`},
		},
		"OSMElsewhere": {
			reason: "OSM users change nothing, and OSM overlooked these", check: CheckNamespace,
			annotations: map[string]string{OSMExcludeInboundPorts: "http", "openservicemesh.io/metrics": "enabled", OSMMonitoredBy: "osm"},
		},
		"EmptyWord": {reason: "an empty word is nothing said", check: CheckPod, annotations: map[string]string{Inject: "", OSMInject: ""}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, err := range c.check(c.annotations) {
				var e *Error
				if !errors.As(err, &e) || e.Otherwise == "" {
					t.Errorf("%s: %v is no *Error that says what holds instead", c.reason, err)
				}
				got = append(got, err.Error())
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", c.reason, diff)
			}
		})
	}
}

// FuzzCheck gives every key any value, on any kind of object: what Check lets pass
// must be what the parsers take, and nothing may panic.
func FuzzCheck(f *testing.F) {
	for _, k := range Keys() {
		f.Add(k.Name, "")
		f.Add(k.Name+"s", "1,2")
	}
	f.Add(ProxyCPU, "100m")
	f.Add(TrafficPolicy, "permissive")
	f.Fuzz(func(t *testing.T, key, value string) {
		annotations := map[string]string{key: value}
		for _, check := range []func(map[string]string) []error{CheckNamespace, CheckService, CheckPod} {
			for _, err := range check(annotations) {
				if err.Error() == "" {
					t.Error("an error without words")
				}
			}
		}
		if len(CheckPod(annotations)) == 0 {
			_, proxy := ParseProxy(annotations)
			_, redirect := ParseRedirect(annotations)
			if proxy != nil || redirect != nil {
				t.Errorf("%s=%q passes, but %v, %v", key, value, proxy, redirect)
			}
		}
	})
}
