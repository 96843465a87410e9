package local

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// A module is a nested Go module under e2e/tools and the programs in it.
type module struct {
	name     string
	programs map[string]string // name of the program to its package
}

// testModules returns what tests run beside a cluster. No cluster waits for it.
func testModules() []module {
	return []module{
		{"certmanager", map[string]string{"cert-manager": "."}},
		{"spire", map[string]string{"spire-agent": spireModule + "/cmd/spire-agent", "spire-server": spireModule + "/cmd/spire-server"}},
		{"vault", map[string]string{"vault": "."}},
	}
}

// modules returns everything that a whole cluster needs built.
func modules() []module {
	const containerd = "github.com/containerd/containerd/v2/cmd/"
	const kubernetes = "k8s.io/kubernetes/cmd/"
	return []module{
		{"etcd", map[string]string{"etcd": "."}},
		{"kubernetes", map[string]string{
			"kube-apiserver":          kubernetes + "kube-apiserver",
			"kube-controller-manager": kubernetes + "kube-controller-manager",
			"kube-proxy":              kubernetes + "kube-proxy",
			"kube-scheduler":          kubernetes + "kube-scheduler",
			"kubectl":                 kubernetes + "kubectl",
			"kubelet":                 kubernetes + "kubelet",
		}},
		{"containerd", map[string]string{
			"containerd":              containerd + "containerd",
			"containerd-shim-runc-v2": containerd + "containerd-shim-runc-v2",
			"ctr":                     containerd + "ctr",
		}},
		{"coredns", map[string]string{"coredns": "github.com/coredns/coredns"}},
	}
}

// programs maps the name of a built program to its path.
type programs map[string]string

// build makes the named programs where the cache does not hold them yet, in the
// order given, and returns their paths. A program is cached under the hash of
// everything that decides what it is, so a change of version is a new build.
// Processes that want the same program wait for the one that builds it.
func (c Config) build(ctx context.Context, names ...string) (programs, error) {
	built := programs{}
	announced := false
	for _, name := range names {
		mod, pkg, err := findProgram(name)
		if err != nil {
			return nil, err
		}
		source, err := c.source("e2e", "tools", mod)
		if err != nil {
			return nil, err
		}
		folder, err := c.toolFolder(ctx, mod, source)
		if err != nil {
			return nil, err
		}
		built[name] = filepath.Join(folder, name)
		if _, err := os.Stat(built[name]); err == nil {
			continue
		}
		if !announced {
			fmt.Fprintln(c.Out, "building what the cluster is made of; from an empty Go build cache this takes about 15 minutes on two cores, once")
			announced = true
		}
		if err := c.step("build "+name, func() error {
			return buildOnce(ctx, source, pkg, built[name])
		}); err != nil {
			return nil, fmt.Errorf("build %s: %w", name, err)
		}
	}
	return built, nil
}

func findProgram(name string) (mod, pkg string, err error) {
	for _, m := range slices.Concat(modules(), testModules()) {
		if pkg, ok := m.programs[name]; ok {
			return m.name, pkg, nil
		}
	}
	return "", "", fmt.Errorf("no module under e2e/tools builds %q", name)
}

// toolFolder returns the cache folder of the programs of the module at source.
func (c Config) toolFolder(ctx context.Context, name, source string) (string, error) {
	version, err := output(ctx, source, "go", "env", "GOVERSION", "GOOS", "GOARCH")
	if err != nil {
		return "", err
	}
	hash := sha256.New()
	hash.Write([]byte(version))
	for _, file := range []string{"go.mod", "go.sum", "main.go", spirePlugins} {
		content, err := os.ReadFile(filepath.Join(source, file))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		if err != nil && file == spirePlugins { // the others have none
			continue
		}
		fmt.Fprintf(hash, "%s %d\n%s", file, len(content), content)
	}
	return filepath.Join(c.Tools, name+"-"+hex.EncodeToString(hash.Sum(nil)[:6])), nil
}

// buildOnce builds pkg of the module at source as target, unless another
// process has done so while this one waited for its turn.
func buildOnce(ctx context.Context, source, pkg, target string) error {
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return err
	}
	unlock, err := lock(target + ".lock")
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := os.Stat(target); err == nil {
		return nil
	}
	folder, flags, cgo := source, "-s -w", "0"
	switch {
	case strings.HasPrefix(pkg, "k8s.io/kubernetes/"):
		stamp, err := kubernetesVersion(ctx, source)
		if err != nil {
			return err
		}
		flags += stamp
	case strings.HasPrefix(pkg, spireModule+"/"):
		folder = target + ".source"
		defer func() { _ = os.RemoveAll(folder) }()
		if err := copySPIRE(ctx, source, folder); err != nil {
			return fmt.Errorf("copy SPIRE's source: %w", err)
		}
		cgo = "1" // its server keeps its data in SQLite, which is C
	}
	// Renamed into place, so that a half-written program is never taken for one.
	partial := target + ".partial"
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", flags, "-o", partial, pkg)
	cmd.Dir = folder
	cmd.Env = append(os.Environ(), "CGO_ENABLED="+cgo, "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build %s: %w\n%s", pkg, err, out)
	}
	return os.Rename(partial, target)
}

// kubernetesVersion returns the linker flags that make the programs of
// Kubernetes report their version. Built from the module proxy they would call
// themselves v0.0.0-master, and a chart that asks for a Kubernetes of at least
// some version would refuse the cluster.
func kubernetesVersion(ctx context.Context, source string) (string, error) {
	version, err := output(ctx, source, "go", "list", "-m", "-f", "{{.Version}}", "k8s.io/kubernetes")
	if err != nil {
		return "", err
	}
	version = strings.TrimSpace(version)
	parts := strings.SplitN(strings.TrimPrefix(version, "v"), ".", 3)
	if len(parts) != 3 {
		return "", fmt.Errorf("the version of k8s.io/kubernetes, %q, is not of the form v1.2.3", version)
	}
	var flags strings.Builder
	for _, pkg := range []string{"k8s.io/component-base/version", "k8s.io/client-go/pkg/version"} {
		fmt.Fprintf(&flags, " -X %[1]s.gitVersion=%[2]s -X %[1]s.gitMajor=%[3]s -X %[1]s.gitMinor=%[4]s",
			pkg, version, parts[0], parts[1])
	}
	return flags.String(), nil
}

// lock takes the lock file at path, waiting for whoever has it. The kernel
// releases it if this process dies.
func lock(path string) (unlock func(), err error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), file.Close())
	}
	return func() { _ = file.Close() }, nil
}

// output runs a command in dir and returns what it printed on standard output.
func output(ctx context.Context, dir, name string, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.String(), nil
}
