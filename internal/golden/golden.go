// Package golden compares what a test made with a file under testdata, rewrites
// the file with -update, and fails a run that leaves golden files unread.
//
// It knows bytes only. How an object becomes text is the test's business; the
// advice is YAML, because protojson varies its white space on purpose.
//
// A test package uses it so:
//
//	func TestMain(m *testing.M) { os.Exit(golden.CheckStale(m, "testdata")) }
//
//	func TestRules(t *testing.T) {
//		golden.Compare(t, "testdata/plain/rules.golden.txt", []byte(got))
//	}
//
// Golden files have ".golden" in their name: rules.golden.txt. To rewrite them
// and drop stale ones: go test ./the/package -update. Only packages that import
// this one know the flag.
package golden

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite golden files with what the tests made, and delete stale ones")

// seen holds the cleaned path of every file that Compare was asked for. It is
// state of the test run, which only TestMain sees from end to end; hence here.
var seen sync.Map

// Compare fails the test when the file at path does not hold exactly got, and
// shows the difference. With -update it writes got there instead, making
// folders as needed. path is relative to the test's package.
func Compare(t testing.TB, path string, got []byte) {
	t.Helper()
	if !isGolden(path) {
		t.Fatalf("golden file %s: the name must contain .golden, or stale files would go unnoticed", path)
	}
	seen.Store(filepath.Clean(path), true)
	want, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("read golden file: %v", err)
	}
	if err == nil && string(want) == string(got) {
		return
	}
	if *update {
		write(t, path, got)
		return
	}
	if err != nil {
		t.Errorf("golden file %s does not exist; -update writes it:\n%s", path, got)
		return
	}
	t.Errorf("%s differs (-want +got; -update rewrites it):\n%s", path, cmp.Diff(string(want), string(got)))
}

func write(t testing.TB, path string, got []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatalf("make folder of golden file: %v", err)
	}
	if err := os.WriteFile(path, got, 0o644); err != nil {
		t.Fatalf("write golden file: %v", err)
	}
	t.Logf("wrote %s", path)
}

// CheckStale runs the tests and returns the code to exit with. When all passed,
// and all were run (no -run, -skip, -list or -fuzz), a golden file below dirs
// that no Compare asked for fails the run: it proves nothing any more. With
// -update it is deleted.
func CheckStale(m *testing.M, dirs ...string) int {
	code := m.Run()
	if code != 0 || filtered() {
		return code
	}
	if err := stale(os.Stderr, dirs); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func filtered() bool {
	for _, name := range []string{"test.run", "test.skip", "test.list", "test.fuzz", "test.fuzzworker"} {
		if f := flag.Lookup(name); f != nil && f.Value.String() != f.DefValue {
			return true
		}
	}
	return false
}

// stale returns an error that names each golden file below dirs that was not
// asked for, or deletes it with -update.
func stale(w io.Writer, dirs []string) error {
	var errs []error
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if _, ok := seen.Load(filepath.Clean(path)); ok || d.IsDir() || !isGolden(path) {
				return nil
			}
			if !*update {
				errs = append(errs, fmt.Errorf("stale golden file: no test reads %s; delete it, or run with -update", path))
				return nil
			}
			fmt.Fprintln(w, "deleted stale golden file", path)
			return os.Remove(path)
		})
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func isGolden(path string) bool {
	return strings.Contains(filepath.Base(path), ".golden")
}
