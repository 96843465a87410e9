package why

import (
	"errors"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/outrigger-mesh/outrigger/injector"
	accessv1alpha3 "github.com/outrigger-mesh/outrigger/internal/api/access/v1alpha3"
	"github.com/outrigger-mesh/outrigger/internal/golden"
	"github.com/outrigger-mesh/outrigger/internal/ingest"
	"github.com/outrigger-mesh/outrigger/internal/manifest"
	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

func TestMain(m *testing.M) { os.Exit(golden.CheckStale(m, "testdata")) }

// A story is a cluster to ask about: one of package scenario, or one of our own.
type story struct {
	objects  manifest.Objects
	settings injector.Settings
	options  ingest.Options
}

func load(t *testing.T, name string) story {
	t.Helper()
	dir := filepath.Join("..", "scenario", "testdata", name)
	if _, err := os.Stat(dir); err != nil {
		dir = filepath.Join("testdata", name)
	}
	var set struct{ TrafficPolicy, Egress, OSMMeshName string }
	text, err := os.ReadFile(filepath.Join(dir, "mesh.yaml"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	if err := yaml.UnmarshalStrict(text, &set); err != nil {
		t.Fatal(err)
	}
	s := story{
		settings: injector.Settings{SystemNamespace: "outrigger-system", OSMMesh: set.OSMMeshName},
		options: ingest.Options{
			Mode: mesh.Permissive, AllowEgress: set.Egress != "deny", TrustDomain: "cluster.local", ClusterDomain: "cluster.local",
			ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:96::/112")},
			OSMMeshName:  set.OSMMeshName, SystemNamespace: "outrigger-system",
		},
	}
	if set.TrafficPolicy == "enforced" {
		s.options.Mode = mesh.Enforced
	}
	if text, err = os.ReadFile(filepath.Join(dir, "in.yaml")); err != nil {
		t.Fatal(err)
	}
	if s.objects, err = manifest.Parse(text, "default"); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s story) world(t *testing.T) World {
	t.Helper()
	objs, err := manifest.Complete(s.objects, s.settings, s.options.ServiceCIDRs)
	if err != nil {
		t.Fatal(err)
	}
	snap, _ := ingest.Build(objs, s.options)
	return World{
		Snapshot: snap, Injector: s.settings, Namespaces: objs.Namespaces, Pods: objs.Pods, Services: objs.Services, Deployments: s.objects.Deployments,
	}
}

// apply makes the change that an answer proposes.
func (s story) apply(t *testing.T, c *Change) story {
	t.Helper()
	if c.Command != "" {
		for command := range strings.Lines(c.Command) {
			s.annotate(t, strings.Fields(command))
		}
		return s
	}
	if len(c.Sources) == 0 {
		more, err := manifest.Parse([]byte(c.YAML), "default")
		if err != nil {
			t.Fatalf("the change is not YAML that the mesh reads: %v", err)
		}
		s.objects.TrafficTargets = slices.Concat(s.objects.TrafficTargets, more.TrafficTargets)
		s.objects.HTTPRouteGroups = slices.Concat(s.objects.HTTPRouteGroups, more.HTTPRouteGroups)
		s.objects.TCPRoutes = slices.Concat(s.objects.TCPRoutes, more.TCPRoutes)
		return s
	}
	var entry []accessv1alpha3.Subject
	if err := yaml.UnmarshalStrict([]byte(c.YAML), &entry); err != nil {
		t.Fatal(err)
	}
	s.objects.TrafficTargets = slices.Clone(s.objects.TrafficTargets)
	for i, o := range s.objects.TrafficTargets {
		if slices.Contains(c.Sources, "TrafficTarget "+o.Namespace+"/"+o.Name) {
			o = o.DeepCopy()
			o.Spec.Sources = append(o.Spec.Sources, entry...)
			s.objects.TrafficTargets[i] = o
		}
	}
	return s
}

// annotate does what kubectl would: "kubectl annotate namespace NAME --overwrite
// KEY=VALUE", or KEY- to take it away, or "service NAME -n NAMESPACE …".
func (s *story) annotate(t *testing.T, words []string) {
	t.Helper()
	setting := strings.Trim(words[len(words)-1], "'")
	change := func(annotations map[string]string) map[string]string {
		annotations = maps.Clone(annotations)
		if annotations == nil {
			annotations = map[string]string{}
		}
		if key, gone := strings.CutSuffix(setting, "-"); gone {
			delete(annotations, key)
		} else {
			key, value, _ := strings.Cut(setting, "=")
			annotations[key] = value
		}
		return annotations
	}
	done := false
	switch {
	case len(words) > 4 && words[2] == "namespace":
		s.objects.Namespaces = slices.Clone(s.objects.Namespaces)
		for i, n := range s.objects.Namespaces {
			if n.Name == words[3] {
				n, done = n.DeepCopy(), true
				n.Annotations = change(n.Annotations)
				s.objects.Namespaces[i] = n
			}
		}
	case len(words) > 6 && words[2] == "service" && words[4] == "-n":
		s.objects.Services = slices.Clone(s.objects.Services)
		for i, o := range s.objects.Services {
			if o.Name == words[3] && o.Namespace == words[5] {
				o, done = o.DeepCopy(), true
				o.Annotations = change(o.Annotations)
				s.objects.Services[i] = o
			}
		}
	}
	if !done {
		t.Fatalf("the change changes nothing: %q", words)
	}
}
