//go:build integration

package main

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/outrigger-mesh/outrigger/e2e/envoybin"
)

const (
	// binaries in the environment makes the test binary what runs in a network
	// namespace, and holds the folder of the binaries that are tested.
	binaries = "OUTRIGGER_TEST_BINARIES"
	// podIP is the pod's address.
	podIP = "10.0.0.51"
)

// build makes the binaries of some packages in a new folder.
func build(t *testing.T, environment string, packages ...string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	command := exec.CommandContext(t.Context(), "go", append([]string{"build", "-trimpath", "-ldflags=-s -w", "-o", dir + "/"}, packages...)...)
	command.Env = append(os.Environ(), "CGO_ENABLED=0", environment)
	if out, err := command.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", strings.Join(packages, " "), err, out)
	}
	return dir
}

// inNetwork runs a test of this package in a network namespace of its own, because Envoy
// listens where pods' do, and logs what that has logged.
func inNetwork(t *testing.T, test, dir string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("this test makes a network namespace and needs root")
	}
	envoy, err := envoybin.EnvoyBinary(t.Context()) // there is no network inside
	must(t, err)
	self, err := os.Executable()
	must(t, err)
	command := exec.CommandContext(t.Context(), self, "-test.run", "^"+test+"$", "-test.v")
	command.Env = append(os.Environ(), binaries+"="+dir, "ENVOY="+envoy)
	command.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	out, err := command.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: "+test) {
		t.Fatalf("in the network namespace: %v\n%s", err, out)
	}
	t.Logf("in the network namespace:\n%s", out)
}

// network prepares the network of a test that inNetwork runs, and returns the folder of
// the binaries; none for a test that somebody else runs.
func network(t *testing.T) (dir string) {
	t.Helper()
	if dir = os.Getenv(binaries); dir == "" {
		return ""
	}
	for _, command := range []string{"link set lo up", "address add " + serviceIP + "/32 dev lo", "address add " + podIP + "/32 dev lo"} {
		if out, err := exec.CommandContext(t.Context(), "ip", strings.Fields(command)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v\n%s", command, err, out)
		}
	}
	return dir
}
