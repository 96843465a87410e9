package scenario

import (
	"cmp"
	_ "embed" // roots.pem
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/outrigger-mesh/outrigger/internal/ingest"
	"github.com/outrigger-mesh/outrigger/internal/manifest"
	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

// roots is a certificate that nobody has the key of.
//
//go:embed roots.pem
var roots string

// A Story is a cluster and what the mesh makes of it.
type Story struct {
	Name string // of its folder
	Dir  string

	Objects  ingest.Objects
	Options  ingest.Options
	Snapshot *mesh.Snapshot
	Problems []ingest.Problem
	// Proxies has one proxy for each distinct View, sorted.
	Proxies []Proxy
}

// A Proxy is one of a Story's proxies and its View.
type Proxy struct {
	ID mesh.ProxyID
	// Dir is the folder of its golden files.
	Dir  string
	View mesh.View
}

// Stories loads every story, in order of name. It is called by tests of this
// package; others give Load the folders that they want.
func Stories(t testing.TB) []Story {
	t.Helper()
	dirs, err := filepath.Glob("testdata/*/in.yaml")
	if err != nil || len(dirs) == 0 {
		t.Fatalf("find stories in testdata: %d, %v", len(dirs), err)
	}
	var out []Story
	for _, in := range dirs {
		s, err := Load(filepath.Dir(in))
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, s)
	}
	return out
}

// Load reads the story in a folder and builds its Snapshot and Views.
func Load(dir string) (Story, error) {
	s := Story{Name: filepath.Base(dir), Dir: dir}
	data, err := os.ReadFile(filepath.Join(dir, "in.yaml"))
	if err != nil {
		return Story{}, fmt.Errorf("read story: %w", err)
	}
	if s.Objects, err = Decode(data); err != nil {
		return Story{}, fmt.Errorf("read %s/in.yaml: %w", dir, err)
	}
	if s.Options, err = options(dir); err != nil {
		return Story{}, fmt.Errorf("read %s/mesh.yaml: %w", dir, err)
	}
	s.Snapshot, s.Problems = ingest.Build(s.Objects, s.Options)
	s.Proxies = proxies(dir, s.Snapshot)
	return s, nil
}

func proxies(dir string, snap *mesh.Snapshot) []Proxy {
	seen := map[mesh.View]bool{}
	var out []Proxy
	for _, id := range snap.Proxies() {
		v, _ := snap.View(id)
		if seen[v] {
			continue
		}
		seen[v] = true
		out = append(out, Proxy{ID: id, Dir: filepath.Join(dir, id.Namespace+"."+id.Pod), View: v})
	}
	return out
}

// settings is mesh.yaml.
type settings struct {
	TrafficPolicy string `json:"trafficPolicy"`
	Egress        string `json:"egress"`
	OSMMeshName   string `json:"osmMeshName"`
	// TrustDomain is the one that signs; empty is cluster.local. Those that are
	// accepted beside it may have roots.
	TrustDomain string `json:"trustDomain"`
	AlsoTrusted []struct {
		Name  string `json:"name"`
		Roots bool   `json:"roots"`
	} `json:"alsoTrusted"`
	// Tracing is written as the model has it.
	Tracing *mesh.Tracing `json:"tracing"`
}

// options returns the mesh's settings for a story: those of a fresh installation,
// which is permissive and lets calls out, changed by mesh.yaml.
func options(dir string) (ingest.Options, error) {
	var s settings
	data, err := os.ReadFile(filepath.Join(dir, "mesh.yaml"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return ingest.Options{}, err
	}
	if err := yaml.UnmarshalStrict(data, &s); err != nil {
		return ingest.Options{}, err
	}
	o := ingest.Options{
		Mode: mesh.Permissive, AllowEgress: true,
		TrustDomain: "cluster.local", ClusterDomain: "cluster.local", TrustBundle: roots,
		ServiceCIDRs:    []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:96::/112")},
		OSMMeshName:     s.OSMMeshName,
		SystemNamespace: "outrigger-system",
		Tracing:         s.Tracing,
	}
	if s.TrafficPolicy == "enforced" {
		o.Mode = mesh.Enforced
	}
	if s.Egress == "deny" {
		o.AllowEgress = false
	}
	o.TrustDomain = cmp.Or(s.TrustDomain, o.TrustDomain)
	for _, d := range s.AlsoTrusted {
		domain := mesh.TrustDomain{Name: d.Name}
		if d.Roots {
			domain.Bundle = roots
		}
		o.AlsoTrusted = append(o.AlsoTrusted, domain)
	}
	return o, nil
}

// Decode reads Kubernetes and SMI objects from YAML documents. What the mesh has no
// use for is an error, as is a field that a kind does not have: in a story it would
// be a slip of the pen.
func Decode(data []byte) (ingest.Objects, error) {
	found, err := manifest.Parse(data, "default")
	if err != nil {
		return ingest.Objects{}, err
	}
	if len(found.Skipped) > 0 || len(found.Templates) > 0 {
		return ingest.Objects{}, fmt.Errorf("a story has no use for %v and %d workloads", found.Skipped, len(found.Templates))
	}
	return found.Objects, nil
}
