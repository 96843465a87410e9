package local

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestDetachedProcess(t *testing.T) {
	dir := t.TempDir()
	marker := filepath.Join(dir, "marker")
	p, err := startDetached(t.Context(), "/bin/sh", filepath.Join(dir, "log"), []string{"WHO=me"},
		"-c", `echo "$WHO" && exec tail -f "$0"`, os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	if p.Name != "sh" || !p.alive() {
		t.Errorf("got %+v, alive %t, want a running sh", p, p.alive())
	}
	if err := os.WriteFile(marker, nil, 0o600); err != nil {
		t.Fatal(err)
	}

	other := p
	other.Start++
	if other.alive() {
		t.Error("a process of the same number with another start time counts as running")
	}
	if err := kill([]process{other}); err != nil {
		t.Errorf("kill a process that is gone: %v", err)
	}
	if !p.alive() {
		t.Fatal("a process was killed that only has the number of the recorded one")
	}

	if err := kill([]process{p}); err != nil {
		t.Fatal(err)
	}
	if p.alive() {
		t.Error("the process runs after it was killed")
	}
	if err := kill([]process{p}); err != nil {
		t.Errorf("kill it again: %v", err)
	}
}

func TestProcessesWhere(t *testing.T) {
	found, err := processesWhere(func(args []string) bool { return slices.Contains(args, os.Args[0]) })
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(found, func(p process) bool { return p.PID == os.Getpid() }) {
		t.Errorf("the test's own process, %d, is not among %+v", os.Getpid(), found)
	}
}

func TestParseStat(t *testing.T) {
	line := func(name string) string {
		return "42 (" + name + ") S 1 42 42 0 -1 4194560 " + strings.Repeat("0 ", 12) + "77 4096 100"
	}
	for name, tc := range map[string]struct {
		reason, stat string
		start        uint64
		fails        bool
	}{
		"plain":       {reason: "the start time is the 22nd field", stat: line("etcd"), start: 77},
		"parentheses": {reason: "a program chooses its name", stat: line("a) R (b"), start: 77},
		"spaces":      {reason: "names may hold spaces", stat: line("a b c d"), start: 77},
		"short":       {reason: "a cut line is no process", stat: "42 (etcd) S 1", fails: true},
		"empty":       {reason: "nothing is no process", fails: true},
	} {
		t.Run(name, func(t *testing.T) {
			start, status, err := parseStat(tc.stat)
			if (err != nil) != tc.fails {
				t.Fatalf("%s: got error %v, want one: %t", tc.reason, err, tc.fails)
			}
			if !tc.fails && (start != tc.start || status != "S") {
				t.Errorf("%s: got start %d, status %s, want %d, S", tc.reason, start, status, tc.start)
			}
		})
	}
}
