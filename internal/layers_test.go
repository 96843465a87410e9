package internal_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/outrigger-mesh/outrigger/"

// layer says what a package may import besides the standard library. A pure
// package may also not use those parts of the standard library that reach the
// outside world.
type layer struct {
	pure bool
	// ours are packages of this module; outside are prefixes of import paths.
	ours    []string
	outside []string
}

// layers is the whole list: a package that is not in it may import nothing, so
// adding one means deciding where it stands. Commands and end-to-end tests wire
// things together and may import everything.
var layers = map[string]layer{
	"internal":                     {},
	"internal/mesh":                {pure: true},
	"internal/annotation":          {pure: true, ours: []string{"internal/mesh"}, outside: []string{"k8s.io/apimachinery/pkg/api/resource", "k8s.io/apimachinery/pkg/util/validation"}},
	"internal/annotation/document": {ours: []string{"internal/annotation"}},
	"internal/iptables":            {pure: true},
	"internal/sidecar":             {pure: true, outside: []string{"k8s.io/api/"}},
	"internal/ingest": {
		pure: true, ours: []string{"internal/mesh", "internal/sidecar", "internal/annotation", "internal/api"},
		outside: []string{"k8s.io/api/", "k8s.io/apimachinery/"},
	},
	"internal/xds": {
		pure: true, ours: []string{"internal/mesh", "bootstrap"},
		outside: []string{"github.com/envoyproxy/go-control-plane/", "github.com/cncf/xds/go/", "cel.dev/expr", "google.golang.org/protobuf/", "sigs.k8s.io/yaml"},
	},
	"injector": {
		pure: true, ours: []string{"internal/annotation", "internal/iptables", "bootstrap", "internal/mesh"},
		outside: []string{"k8s.io/api/", "k8s.io/apimachinery/", "gomodules.xyz/jsonpatch/v2"},
	},
	"bootstrap": {
		pure: true, ours: []string{"internal/mesh"},
		outside: []string{"github.com/envoyproxy/go-control-plane/", "google.golang.org/protobuf/"},
	},
	"internal/why": {
		pure: true, ours: []string{"internal/mesh", "injector", "internal/annotation"},
		outside: []string{"k8s.io/api/", "k8s.io/apimachinery/"},
	},
	"internal/manifest": {
		pure: true, ours: []string{"internal/api", "internal/api/conversion", "internal/annotation", "internal/ingest", "injector"},
		outside: []string{"k8s.io/api/", "k8s.io/apimachinery/"},
	},
	"webhook":                 {ours: []string{"injector", "internal/rotation", "internal/annotation", "internal/api/conversion"}, outside: []string{"k8s.io/apiextensions-apiserver/pkg/apis/", "k8s.io/api/", "k8s.io/apimachinery/", "github.com/prometheus/client_golang/", "github.com/go-logr/logr", "gomodules.xyz/jsonpatch/v2"}},
	"internal/limit":          {outside: []string{"golang.org/x/time/"}},
	"internal/vault":          {},
	"internal/signing":        {ours: []string{"internal/mesh"}, outside: []string{"google.golang.org/"}},
	"internal/api":            {outside: []string{"k8s.io/apimachinery/"}},
	"internal/api/conversion": {pure: true, ours: []string{"internal/annotation"}, outside: []string{"k8s.io/apimachinery/"}},
	"internal/controller": {
		ours:    []string{"internal/mesh", "internal/sidecar", "internal/rotation", "internal/ingest", "internal/api", "internal/annotation", "injector"},
		outside: []string{"k8s.io/", "sigs.k8s.io/controller-runtime", "github.com/go-logr/logr", "github.com/prometheus/client_golang/"},
	},
	"internal/rotation": {pure: true, outside: []string{"k8s.io/apimachinery/pkg/util/validation"}},
	"internal/identity": {
		ours:    []string{"internal/limit", "internal/mesh", "internal/sidecar", "internal/rotation", "internal/signing", "internal/annotation", "internal/vault"},
		outside: []string{"k8s.io/", "sigs.k8s.io/controller-runtime", "github.com/go-logr/logr", "github.com/prometheus/client_golang/", "golang.org/x/", "google.golang.org/grpc/codes", "github.com/cert-manager/cert-manager/pkg/apis/"},
	},
	"internal/server": {
		ours:    []string{"internal/limit", "internal/mesh", "internal/xds", "internal/signing"},
		outside: []string{"github.com/envoyproxy/go-control-plane/", "google.golang.org/", "github.com/go-logr/logr", "github.com/prometheus/client_golang/", "golang.org/x/", "sigs.k8s.io/yaml"},
	},
	"internal/agent": {
		ours:    []string{"bootstrap", "internal/signing", "internal/mesh"},
		outside: []string{"google.golang.org/", "golang.org/x/", "github.com/spiffe/go-spiffe/v2/proto/"},
	},
	"internal/golden":   {outside: []string{"github.com/google/go-cmp/"}},
	"internal/scenario": {ours: []string{"internal/mesh", "internal/ingest", "internal/manifest", "internal/golden"}, outside: []string{"k8s.io/", "sigs.k8s.io/yaml"}},
	"internal/xds/envoytest": {
		ours:    []string{"internal/xds", "internal/mesh", "internal/iptables", "bootstrap", "e2e/envoybin"},
		outside: []string{"github.com/envoyproxy/go-control-plane/", "google.golang.org/", "golang.org/x/sys/", "github.com/google/go-cmp/", "sigs.k8s.io/yaml"},
	},
	"internal/proof": {}, // nothing but tests
	"manifests":      {},
}

// reaches are the parts of the standard library that pure packages do without:
// the environment, files, the network, the clock's readings and logs.
var reaches = []string{"context", "os", "os/exec", "net", "net/http", "log", "log/slog", "io/fs", "io/ioutil", "syscall"}

// TestLayers reads the imports of every package, so that the two flows of the
// design cannot be run against.
func TestLayers(t *testing.T) {
	for file, imports := range importsOf(t, "..") {
		pkg := filepath.ToSlash(filepath.Dir(file))
		if strings.HasPrefix(pkg, "cmd/") || pkg == "e2e" || strings.HasPrefix(pkg, "e2e/") {
			continue
		}
		rule, known := lookUp(pkg)
		if !known {
			t.Errorf("%s: package %s has no place among the layers; give it one in internal/layers_test.go", file, pkg)
			continue
		}
		for _, imp := range imports {
			if why := rule.refuses(pkg, imp); why != "" {
				t.Errorf("%s imports %s: %s", file, imp, why)
			}
		}
	}
}

// lookUp finds the layer of a package; internal/api and its versions share one.
func lookUp(pkg string) (layer, bool) {
	for p := pkg; p != "."; p = filepath.ToSlash(filepath.Dir(p)) {
		if rule, ok := layers[p]; ok {
			return rule, p == pkg || p == "internal/api"
		}
	}
	return layer{}, false
}

// refuses says why a package of layer l may not import imp, or nothing.
func (l layer) refuses(pkg, imp string) string {
	if ours, ok := strings.CutPrefix(imp, module); ok {
		for _, allowed := range append(l.ours, pkg) {
			if ours == allowed || strings.HasPrefix(ours, "internal/api/") && (allowed == "internal/api" || strings.HasPrefix(pkg, "internal/api")) {
				return ""
			}
		}
		return "its layer does not know that package"
	}
	if !strings.Contains(strings.Split(imp, "/")[0], ".") {
		if l.pure && slices.Contains(reaches, imp) {
			return "a pure package reaches nothing outside"
		}
		return ""
	}
	if slices.ContainsFunc(l.outside, func(prefix string) bool { return strings.HasPrefix(imp, prefix) }) {
		return ""
	}
	return "that module is not among those of its layer"
}

// importsOf returns the imports of every file below root that is not a test, by
// file name relative to root.
func importsOf(t *testing.T, root string) map[string][]string {
	t.Helper()
	found := map[string][]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (strings.HasPrefix(d.Name(), ".") && path != root || d.Name() == "testdata" || d.Name() == "dist" || d.Name() == "tools") {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		found[rel] = []string{}
		for _, spec := range file.Imports {
			imp, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			found[rel] = append(found[rel], imp)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(found) < 10 {
		t.Fatalf("only %d files found below %s: the test looks in the wrong place", len(found), root)
	}
	return found
}
