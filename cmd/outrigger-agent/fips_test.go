package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestFIPS runs the agent of make build-fips, with every algorithm forbidden that
// is not approved, until it has a certificate and has renewed it.
func TestFIPS(t *testing.T) {
	makefile, err := os.ReadFile("../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	_, version, found := strings.Cut(string(makefile), "\nFIPS := ")
	if version, _, _ = strings.Cut(version, "\n"); !found || version == "" {
		t.Fatal("the Makefile does not say which module make build-fips uses")
	}
	w := newWorld(t)
	w.serveApp()
	w.lifetime = 6 * time.Second
	w.serve()
	binary := filepath.Join(w.dir, "outrigger-agent")
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags=-s -w", "-o", binary, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFIPS140="+version)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the agent: %v\n%s", err, out)
	}
	info, err := exec.CommandContext(t.Context(), "go", "version", "-m", binary).Output()
	if err != nil || !strings.Contains(string(info), "GOFIPS140="+version) {
		t.Fatalf("the binary does not have the module: %v\n%s", err, info)
	}
	w.environment = []string{"GODEBUG=fips140=only"}
	s := w.start(binary, nil)
	s.ready()
	s.eventually("there was a second certificate", func() error {
		if n := strings.Count(s.log.String(), "certificate signed"); n < 2 {
			return fmt.Errorf("there was %d", n)
		}
		return nil
	})
}
