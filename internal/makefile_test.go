package internal_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// tagged is a build tag of tests that make integration runs.
var tagged = regexp.MustCompile(`^//go:build .*\b(netns|integration)\b`)

// TestIntegrationTestsAreRun fails for a package with tests that make test leaves out.
func TestIntegrationTestsAreRun(t *testing.T) {
	makefile, err := os.ReadFile("../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	runs := strings.Fields(string(makefile))
	found := 0
	err = filepath.WalkDir("..", func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		if err == nil && tagged.Match(text) {
			found++
			if pkg := "./" + strings.TrimPrefix(filepath.Dir(path), "../"); !slices.Contains(runs, pkg) {
				t.Errorf("the Makefile's integration leaves out %s, with %s", pkg, path)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if found < 30 {
		t.Errorf("only %d files with integration tests were found", found)
	}
}
