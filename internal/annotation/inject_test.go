package annotation

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestPodWord(t *testing.T) {
	cases := map[string]struct {
		reason      string
		labels      map[string]string
		annotations map[string]string
		want        Word
		wantErr     *Error
	}{
		"nothing":               {reason: "most pods leave it to their namespace", want: Unsaid},
		"label":                 {reason: "the label is the usual form", labels: map[string]string{Inject: "enabled"}, want: Enabled},
		"annotation":            {reason: "an annotation does as well", annotations: map[string]string{Inject: "no"}, want: Disabled},
		"osm annotation":        {reason: "OSM users change nothing", annotations: map[string]string{OSMInject: "true"}, want: Enabled},
		"any case":              {reason: "case never matters", labels: map[string]string{Inject: "FaLsE"}, want: Disabled},
		"label over annotation": {reason: "the label wins", labels: map[string]string{Inject: "no"}, annotations: map[string]string{Inject: "yes", OSMInject: "yes"}, want: Disabled},
		"ours over OSM's":       {reason: "a moved workload may keep its old annotation", annotations: map[string]string{Inject: "disabled", OSMInject: "enabled"}, want: Disabled},
		"empty label":           {reason: "the API server's condition takes the first that is there, so an empty label hides the annotation", labels: map[string]string{Inject: ""}, annotations: map[string]string{Inject: "yes"}, want: Unsaid},
		"unknown label": {
			reason: "a typing error must not silently decide", labels: map[string]string{Inject: "on"},
			wantErr: &Error{Object: "pod label", Key: Inject, Value: "on", Allowed: Words},
		},
		"unknown OSM annotation": {
			reason: "OSM denies too", annotations: map[string]string{OSMInject: "enable"},
			wantErr: &Error{Object: "pod annotation", Key: OSMInject, Value: "enable", Allowed: Words},
		},
		"space": {
			reason: "white space is not trimmed, because the API server's condition does not", annotations: map[string]string{Inject: "disabled "},
			wantErr: &Error{Object: "pod annotation", Key: Inject, Value: "disabled ", Allowed: Words},
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := PodWord(tc.labels, tc.annotations)
			checkWord(t, tc.reason, got, tc.want, err, tc.wantErr)
		})
	}
}

func TestNamespaceWord(t *testing.T) {
	cases := map[string]struct {
		reason string
		labels map[string]string
		want   Word
		err    *Error
	}{
		"nothing":  {reason: "not in the mesh by our label", want: Unsaid},
		"enabled":  {reason: "pods get sidecars", labels: map[string]string{Inject: "Yes"}, want: Enabled},
		"disabled": {reason: "pods may ask", labels: map[string]string{Inject: "disabled"}, want: Disabled},
		"empty": {
			reason: "the selector matches an empty label, so somebody must say that it means nothing",
			labels: map[string]string{Inject: ""}, err: &Error{Object: "namespace label", Key: Inject, Allowed: Words},
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := NamespaceWord(tc.labels)
			checkWord(t, tc.reason, got, tc.want, err, tc.err)
		})
	}
}

func checkWord(t *testing.T, reason string, got, want Word, err error, wantErr *Error) {
	t.Helper()
	if got != want {
		t.Errorf("%s: word = %v, want %v", reason, got, want)
	}
	var gotErr *Error
	if err != nil && !errors.As(err, &gotErr) {
		t.Fatalf("%s: error %v is not an *Error", reason, err)
	}
	if diff := cmp.Diff(wantErr, gotErr); diff != "" {
		t.Errorf("%s: error (-want +got):\n%s", reason, diff)
	}
}

func TestInMesh(t *testing.T) {
	cases := map[string]struct {
		reason      string
		labels      map[string]string
		want, byOSM bool
	}{
		"no label":             {reason: "nobody joins by accident"},
		"enabled":              {reason: "one label is all it takes", labels: map[string]string{Inject: "enabled"}, want: true},
		"disabled":             {reason: "part of the mesh, pods ask", labels: map[string]string{Inject: "disabled"}, want: true},
		"unknown":              {reason: "its pods are denied with a reason", labels: map[string]string{Inject: "on"}, want: true},
		"osm":                  {reason: "OSM's label means the same", labels: map[string]string{OSMMonitoredBy: "osm"}, want: true, byOSM: true},
		"another OSM mesh":     {reason: "that is another mesh's namespace", labels: map[string]string{OSMMonitoredBy: "prod"}},
		"osm without a name":   {reason: "no mesh has an empty name", labels: map[string]string{OSMMonitoredBy: ""}},
		"osm control plane":    {reason: "OSM leaves these out", labels: map[string]string{OSMMonitoredBy: "osm", ControlPlane: "x"}},
		"control plane, ours":  {reason: "our label is explicit and means what it says", labels: map[string]string{Inject: "enabled", ControlPlane: "x"}, want: true},
		"ours and OSM's":       {reason: "ours is the word then", labels: map[string]string{Inject: "disabled", OSMMonitoredBy: "osm"}, want: true},
		"ignored":              {reason: "ignore beats everything", labels: map[string]string{Inject: "enabled", OSMIgnore: ""}},
		"ignored OSM's":        {reason: "ignore beats everything", labels: map[string]string{OSMMonitoredBy: "osm", OSMIgnore: "true"}},
		"other case, OSM name": {reason: "mesh names are compared exactly", labels: map[string]string{OSMMonitoredBy: "OSM"}},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			if got := InMesh(tc.labels, "osm"); got != tc.want {
				t.Errorf("%s: InMesh = %v, want %v", tc.reason, got, tc.want)
			}
			if got := ByOSM(tc.labels, "osm"); got != tc.byOSM {
				t.Errorf("%s: ByOSM = %v, want %v", tc.reason, got, tc.byOSM)
			}
		})
	}
}

func TestInMeshWithoutOSM(t *testing.T) {
	labels := map[string]string{OSMMonitoredBy: ""}
	if InMesh(labels, "") {
		t.Error("a mesh that takes no OSM namespaces must not take those with an empty label")
	}
}

func TestSystemNamespaces(t *testing.T) {
	for _, name := range SystemNamespaces("mesh-system") {
		if !IsSystem(name, "mesh-system") {
			t.Errorf("IsSystem(%q) = false, but SystemNamespaces has it", name)
		}
	}
	if IsSystem("default", "mesh-system") {
		t.Error("IsSystem(default) = true; it is an ordinary namespace")
	}
}

func FuzzPodWord(f *testing.F) {
	f.Add("enabled", "no", "true")
	f.Add("", "x", "\x00")
	f.Fuzz(func(t *testing.T, label, ann, osm string) {
		word, err := PodWord(map[string]string{Inject: label}, map[string]string{Inject: ann, OSMInject: osm})
		if err != nil && word != Unsaid {
			t.Errorf("PodWord(%q, %q, %q) = %v with error %v", label, ann, osm, word, err)
		}
		if again, err := PodWord(map[string]string{Inject: label}, nil); word != again || (err != nil) != (word == Unsaid && label != "") {
			t.Errorf("annotations changed the meaning of label %q: %v, alone %v, %v", label, word, again, err)
		}
	})
}
