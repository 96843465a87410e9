package envoybin_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/outrigger-mesh/outrigger/e2e/envoybin"
)

func TestEnvoyBinaryRuns(t *testing.T) {
	path, err := envoybin.EnvoyBinary(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), path, "--version").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "/"+envoybin.Version+"/") {
		t.Errorf("%s --version: %v, %q; want release %s", path, err, out, envoybin.Version)
	}
}

func TestEnvoyFromTheEnvironment(t *testing.T) {
	path := filepath.Join(t.TempDir(), "my-envoy")
	t.Setenv("ENVOY", path)
	if got, err := envoybin.EnvoyBinary(t.Context()); err == nil || !strings.Contains(err.Error(), "ENVOY") {
		t.Errorf("ENVOY names an absent file: got %q, %v; want an error that names the variable", got, err)
	}
	if err := os.WriteFile(path, []byte("#!/bin/true\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if got, err := envoybin.EnvoyBinary(t.Context()); err != nil || got != path {
		t.Errorf("got %q, %v; want %q", got, err, path)
	}
}

func TestFetchNamesTheArchitecturesItKnows(t *testing.T) {
	_, err := envoybin.Fetch(t.Context(), "riscv64")
	if err == nil || !strings.Contains(err.Error(), "riscv64") || !strings.Contains(err.Error(), "arm64") {
		t.Errorf("got %v, want an error that names riscv64 and what is allowed", err)
	}
}
