package golden

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// recorder is a testing.TB that keeps complaints instead of failing.
type recorder struct {
	testing.TB
	complaints []string
}

func (r *recorder) Helper()             {}
func (r *recorder) Logf(string, ...any) {}
func (r *recorder) Errorf(format string, args ...any) {
	r.complaints = append(r.complaints, fmt.Sprintf(format, args...))
}

func (r *recorder) Fatalf(format string, args ...any) {
	r.Errorf(format, args...)
	panic(r) // as Fatalf of a real test, it does not return
}

func TestCompare(t *testing.T) {
	cases := map[string]struct {
		reason string
		name   string
		file   *string // nil: there is none
		update bool
		want   string // in the complaint; empty: none
		after  *string
	}{
		"same": {
			reason: "a file that holds the bytes satisfies the test",
			name:   "a.golden.txt", file: new("new\n"), after: new("new\n"),
		},
		"different": {
			reason: "a difference fails the test and leaves the file alone",
			name:   "a.golden.txt", file: new("old\n"), want: "-want +got", after: new("old\n"),
		},
		"missing": {
			reason: "a file that is not there is not the same as an empty one",
			name:   "a.golden.txt", want: "does not exist",
		},
		"update": {
			reason: "-update writes what the test made, in folders that may not exist yet",
			name:   "deeper/a.golden.txt", update: true, after: new("new\n"),
		},
		"name": {
			reason: "a name that the search for stale files would pass over is refused",
			name:   "a.txt", update: true, want: "must contain .golden",
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), tc.name)
			if tc.file != nil {
				if err := os.WriteFile(path, []byte(*tc.file), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			setUpdate(t, tc.update)
			r := &recorder{}
			func() {
				defer func() {
					if p := recover(); p != nil && p != r {
						panic(p)
					}
				}()
				Compare(r, path, []byte("new\n"))
			}()
			if got := strings.Join(r.complaints, "\n"); tc.want == "" && got != "" || !strings.Contains(got, tc.want) {
				t.Errorf("%s: complaint %q, want one with %q", tc.reason, got, tc.want)
			}
			after, err := os.ReadFile(path)
			if tc.after == nil && err == nil || tc.after != nil && string(after) != *tc.after {
				t.Errorf("%s: file holds %q afterwards (%v)", tc.reason, after, err)
			}
		})
	}
}

func TestStale(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"read.golden.txt", "left.golden.txt", "input.yaml"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	setUpdate(t, false)
	Compare(t, filepath.Join(dir, "read.golden.txt"), []byte("x"))

	var out bytes.Buffer
	err := stale(&out, []string{dir})
	if err == nil || !strings.Contains(err.Error(), "left.golden.txt") || strings.Contains(err.Error(), "read.golden.txt") {
		t.Errorf("stale() = %v, want an error about left.golden.txt alone", err)
	}
	if err := stale(&out, []string{filepath.Join(dir, "absent")}); err == nil {
		t.Error("a folder that does not exist must be an error, or a typing mistake would hide every stale file")
	}

	setUpdate(t, true)
	if err := stale(&out, []string{dir}); err != nil {
		t.Errorf("stale() with -update: %v", err)
	}
	left, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(left) != 2 {
		t.Errorf("after -update the folder holds %v (%v), want the input and the golden file that was read", left, err)
	}
}

func setUpdate(t *testing.T, value bool) {
	t.Helper()
	before := *update
	*update = value
	t.Cleanup(func() { *update = before })
}
