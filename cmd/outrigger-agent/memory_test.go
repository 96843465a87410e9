package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestMemory measures the agent that users run, at rest after a renewal.
func TestMemory(t *testing.T) {
	const limit = 20 << 10 // kB
	w := newWorld(t)
	w.serveApp()
	w.lifetime = 6 * time.Second
	w.serve()
	binary := filepath.Join(w.dir, "outrigger-agent")
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags=-s -w", "-o", binary, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the agent: %v\n%s", err, out)
	}
	s := w.start(binary, nil)
	s.ready()
	s.eventually("there were three certificates", func() error {
		if n := strings.Count(s.log.String(), "certificate signed"); n < 3 {
			return fmt.Errorf("there were %d", n)
		}
		return nil
	})
	for range 500 { // the kubelet asks all the time
		s.ready()
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.command.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	match := regexp.MustCompile(`VmRSS:\s+(\d+) kB`).FindSubmatch(status)
	if match == nil {
		t.Fatalf("no VmRSS in:\n%s", status)
	}
	rss, err := strconv.Atoi(string(match[1]))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("resident memory of the agent: %d kB\n%s", rss, regexp.MustCompile(`Rss\w+:.*`).FindAll(status, -1))
	if rss > limit {
		t.Errorf("the agent holds %d kB; want at most %d kB", rss, limit)
	}
}
