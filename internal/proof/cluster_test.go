package proof

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"sigs.k8s.io/yaml"

	"github.com/outrigger-mesh/outrigger/internal/ingest"
	"github.com/outrigger-mesh/outrigger/internal/manifest"
	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

const (
	trustDomain   = "cluster.local"
	clusterDomain = "cluster.local"
)

// A cluster is the objects in it and how the mesh was installed.
type cluster struct {
	ingest.Objects
	enforced bool // where a namespace says nothing
	egress   bool // likewise
}

// build is what the mesh makes of a cluster, and of further trust domains that it
// accepts.
func (c cluster) build(roots string, also ...mesh.TrustDomain) *mesh.Snapshot {
	opts := ingest.Options{
		AllowEgress: c.egress, TrustDomain: trustDomain, ClusterDomain: clusterDomain, TrustBundle: roots, AlsoTrusted: also,
		ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}, SystemNamespace: "outrigger-system",
	}
	if !c.enforced {
		opts.Mode = mesh.Permissive
	}
	snap, _ := ingest.Build(c.Objects, opts)
	return snap
}

// settings is the first line of a cluster's YAML.
const settings = "# mesh: enforced=%t egress=%t\n"

// String writes a cluster as YAML, as read takes it.
func (c cluster) String() string {
	var out strings.Builder
	fmt.Fprintf(&out, settings, c.enforced, c.egress)
	for _, o := range slices.Concat(
		objects(c.Namespaces), objects(c.Pods), objects(c.Services), objects(c.EndpointSlices),
		objects(c.TrafficTargets), objects(c.HTTPRouteGroups), objects(c.TCPRoutes), objects(c.TrafficSplits),
	) {
		text, err := yaml.Marshal(o)
		if err != nil {
			panic(err) // the kinds of Kubernetes all can be written
		}
		fmt.Fprintf(&out, "---\n%s", text)
	}
	return out.String()
}

func objects[T any](list []T) []any {
	var out []any
	for _, o := range list {
		out = append(out, o)
	}
	return out
}

// read reads a cluster's YAML.
func read(t *testing.T, file string) cluster {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var c cluster
	first, _, _ := bytes.Cut(text, []byte("---"))
	if _, err := fmt.Sscanf(string(first), settings, &c.enforced, &c.egress); err != nil {
		t.Fatalf("%s: its first line is not %q: %v", file, settings, err)
	}
	found, err := manifest.Parse(text, "default")
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	c.Objects = found.Objects
	return c
}

// smallest takes objects away as long as the cluster still fails.
func smallest(c cluster, fails func(cluster) bool) cluster {
	for again := true; again; {
		again = false
		for _, less := range c.withoutOne() {
			if fails(less) {
				c, again = less, true
				break
			}
		}
	}
	return c
}

// withoutOne returns every cluster that is c without one object of policy.
func (c cluster) withoutOne() []cluster {
	var out []cluster
	add := func(change func(*cluster)) {
		less := c
		change(&less)
		out = append(out, less)
	}
	for i := range c.TrafficTargets {
		add(func(l *cluster) { l.TrafficTargets = without(c.TrafficTargets, i) })
	}
	for i := range c.TrafficSplits {
		add(func(l *cluster) { l.TrafficSplits = without(c.TrafficSplits, i) })
	}
	for i := range c.HTTPRouteGroups {
		add(func(l *cluster) { l.HTTPRouteGroups = without(c.HTTPRouteGroups, i) })
	}
	for i := range c.TCPRoutes {
		add(func(l *cluster) { l.TCPRoutes = without(c.TCPRoutes, i) })
	}
	for i, s := range c.Services {
		add(func(l *cluster) {
			l.Services = without(c.Services, i)
			l.EndpointSlices = slices.DeleteFunc(slices.Clone(c.EndpointSlices), func(e *discoveryv1.EndpointSlice) bool {
				return e.Namespace == s.Namespace && e.Labels[discoveryv1.LabelServiceName] == s.Name
			})
		})
		for j := range s.Spec.Ports {
			if len(s.Spec.Ports) == 1 {
				continue
			}
			add(func(l *cluster) {
				fewer := s.DeepCopy()
				fewer.Spec.Ports = without(s.Spec.Ports, j)
				l.Services = slices.Clone(c.Services)
				l.Services[i] = fewer
			})
		}
	}
	for i := range c.EndpointSlices {
		add(func(l *cluster) { l.EndpointSlices = without(c.EndpointSlices, i) })
	}
	return out
}

func without[T any](list []T, i int) []T { return slices.Delete(slices.Clone(list), i, i+1) }

// find returns a pod of a cluster by the names of its namespace and itself.
func (c cluster) find(namespace, name string) *corev1.Pod {
	i := slices.IndexFunc(c.Pods, func(p *corev1.Pod) bool { return p.Namespace == namespace && p.Name == name })
	if i < 0 {
		return nil
	}
	return c.Pods[i]
}
