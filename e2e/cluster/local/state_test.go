package local

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestStateSurvives(t *testing.T) {
	c := Config{State: t.TempDir()}
	if _, exists, err := c.loadState(); exists || err != nil {
		t.Fatalf("a folder without a cluster: got exists %t, error %v, want neither", exists, err)
	}
	want := state{
		Boot:       "b",
		Tools:      []string{"/tools/etcd-1"},
		Run:        "/run/x",
		Processes:  []process{{Name: "etcd", PID: 7, Start: 9}},
		Bridge:     "x0",
		Tables:     []string{"ip kube-proxy"},
		HostTables: []string{"ip nat"},
		Cgroup:     "x",
		Sysctls:    map[string]string{"net/ipv4/ip_forward": "0"},
	}
	if err := c.saveState(want); err != nil {
		t.Fatal(err)
	}
	got, exists, err := c.loadState()
	if !exists || err != nil {
		t.Fatalf("got exists %t, error %v, want a state", exists, err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("state (-saved +loaded):\n%s", diff)
	}
}

func TestDamagedStateIsRefused(t *testing.T) {
	for name, tc := range map[string]struct{ reason, content, want string }{
		"cut off": {
			reason:  "half of a file must not pass for a whole one",
			content: `{"boot": "b", `,
			want:    "unexpected end of JSON input",
		},
		"no folder of sockets": {
			reason:  "an empty path would be the prefix of everything that is compared with it",
			content: `{"boot": "b", "cgroup": "x"}`,
			want:    `run ""`,
		},
		"no cgroup": {
			reason:  "the root of all cgroups must not be taken for the cluster's",
			content: `{"boot": "b", "run": "/run/x"}`,
			want:    `cgroup ""`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := Config{State: t.TempDir()}
			if err := os.WriteFile(c.stateFile(), []byte(tc.content), 0o600); err != nil {
				t.Fatal(err)
			}
			_, exists, err := c.loadState()
			if err == nil || exists || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%s: got exists %t, error %v, want an error with %q", tc.reason, exists, err, tc.want)
			}
		})
	}
}

func TestRemoveFilesKeepsTheLogs(t *testing.T) {
	c := Config{State: t.TempDir()}
	run := t.TempDir()
	for _, folder := range []string{c.logs(), filepath.Join(c.State, "pki"), filepath.Join(run, "s")} {
		if err := os.MkdirAll(folder, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{c.log("etcd"), c.kubeconfig(), c.stateFile(), c.lockFile()} {
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.removeFiles(state{Run: run}); err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(filepath.Join(c.State, "*"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{c.lockFile(), c.logs()}, left); diff != "" {
		t.Errorf("files that stay (-want +got):\n%s", diff)
	}
	if _, err := os.Stat(run); err == nil {
		t.Error("the folder of sockets is still there")
	}
}

func TestRemoveOnlyOwnTraces(t *testing.T) {
	folder := t.TempDir()
	for name, content := range map[string]string{
		"ours":    `{"netns": "/run/x/containerd/netns/cni-1"}`,
		"theirs":  `{"netns": "/run/xy/netns/cni-1"}`,
		"garbage": `{`,
	} {
		if err := os.WriteFile(filepath.Join(folder, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{"our-link": "/state/pods/a.log", "their-link": "/state/pods2/a.log"} {
		if err := os.Symlink(target, filepath.Join(folder, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := removeLinksInto(folder, "/state/pods"); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(folder, "their-link")); err != nil {
		t.Errorf("a link that leads elsewhere is gone: %v", err)
	}
	if err := removeCNIResults(folder, "/run/x"); err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(filepath.Join(folder, "*"))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{filepath.Join(folder, "garbage"), filepath.Join(folder, "theirs")}
	if diff := cmp.Diff(want, left); diff != "" {
		t.Errorf("files that stay (-want +got):\n%s", diff)
	}
}
