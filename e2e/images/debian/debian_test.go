package debian

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/outrigger-mesh/outrigger/e2e/images/oci"
)

func TestCandidates(t *testing.T) {
	const libc = `libc6:
  Installed: 2.36-9+deb12u10
  Candidate: 2.36-9+deb12u14
  Version table:
     2.36-9+deb12u14 500
        500 http://mirror.example bookworm/main amd64 Packages
 *** 2.36-9+deb12u10 100
        100 /var/lib/dpkg/status
`
	cases := map[string]struct {
		reason string
		policy string
		want   []string
		err    string
	}{
		"NewestNotInstalled": {
			reason: "what apt would install is taken, not what this machine happens to have",
			policy: libc, want: []string{"libc6:amd64=2.36-9+deb12u14"},
		},
		"SortedAndOnce": {
			reason: "the answer names a folder in the cache, so its order must not vary",
			policy: "zlib1g:\n  Candidate: 1:1.2.13\n" + libc + "zlib1g:amd64:\n  Candidate: 1:1.2.13\n",
			want:   []string{"libc6:amd64=2.36-9+deb12u14", "zlib1g:amd64=1:1.2.13"},
		},
		"NoCandidate": {
			reason: "a package that the lists name but do not hold cannot be fetched",
			policy: "libc6:\n  Installed: (none)\n  Candidate: (none)\n", err: "libc6 has no version for amd64",
		},
		"NoLists": {
			reason: "apt-cache prints nothing for what it does not know",
			err:    "know none",
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := candidates(tc.policy, "amd64")
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Errorf("%s: got %v, %v; want an error with %q", tc.reason, got, err, tc.err)
				}
				return
			}
			if diff := cmp.Diff(tc.want, got); diff != "" || err != nil {
				t.Errorf("%s: %v (-want +got):\n%s", tc.reason, err, diff)
			}
		})
	}
}

// tree returns a tree that holds files with the given content; "-> x" makes a
// link to x.
func tree(t *testing.T, files map[string]string) *Tree {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		target := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if link, ok := strings.CutPrefix(content, "-> "); ok {
			err = os.Symlink(link, target)
		} else {
			err = os.WriteFile(target, []byte(content), 0o640)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return &Tree{root: root, triplet: "x86_64-linux-gnu"}
}

func TestFilesHaveOnePlaceInAllReleases(t *testing.T) {
	for name, files := range map[string]map[string]string{
		"BeforeTheMerge": {"sbin/a": "text", "sbin/b": "-> a"},
		"AfterTheMerge":  {"usr/sbin/a": "text", "usr/sbin/b": "-> a"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := tree(t, files).Files([]string{"usr/sbin/?"}, nil)
			if err != nil {
				t.Fatal(err)
			}
			slices.SortFunc(got, func(a, b oci.File) int { return strings.Compare(a.Path, b.Path) })
			if len(got) != 2 || got[0].Path != "usr/sbin/a" || got[0].Mode != 0o640 || filepath.Base(got[0].Source) != "a" {
				t.Fatalf("got %+v, want usr/sbin/a with its permissions", got)
			}
			if diff := cmp.Diff(oci.File{Path: "usr/sbin/b", Link: "a"}, got[1]); diff != "" {
				t.Errorf("link (-want +got):\n%s", diff)
			}
		})
	}
}

func TestFilesRefusesWhatWouldNotRun(t *testing.T) {
	empty := tree(t, nil)
	if _, err := empty.Files([]string{"usr/bin/curl"}, nil); err == nil || !strings.Contains(err.Error(), "usr/bin/curl") {
		t.Errorf("absent file: got %v, want an error that names it", err)
	}
	// The shell of this machine needs a C library, which the tree lacks.
	_, err := empty.Files(nil, []string{"/bin/sh"})
	if err == nil || !strings.Contains(err.Error(), "library libc.so.6, which /bin/sh needs") {
		t.Errorf("absent library: got %v, want an error that names it and who needs it", err)
	}
}

func TestUnpackNamesTheArchitecturesItKnows(t *testing.T) {
	_, err := Unpack(t.Context(), "riscv64", "libc6")
	if err == nil || !strings.Contains(err.Error(), "riscv64") || !strings.Contains(err.Error(), "arm64") {
		t.Errorf("got %v, want an error that names riscv64 and what is allowed", err)
	}
}
