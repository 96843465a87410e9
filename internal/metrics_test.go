package internal_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// metric is the name of one of outriggerd's, as code has it.
var metric = regexp.MustCompile(`"(outrigger_[a-z_]+[a-z])"`)

// TestObservabilityPageNamesEveryMetric fails for a metric that docs/observability.md
// does not explain.
func TestObservabilityPageNamesEveryMetric(t *testing.T) {
	page, err := os.ReadFile("../docs/observability.md")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, root := range []string{".", "../webhook", "../cmd/outriggerd"} {
		err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			text, err := os.ReadFile(path)
			for _, match := range metric.FindAllStringSubmatch(string(text), -1) {
				found++
				if !strings.Contains(string(page), "`"+match[1]+"`") {
					t.Errorf("docs/observability.md does not name %s of %s", match[1], path)
				}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if found < 14 {
		t.Errorf("only %d metrics were found in the code", found)
	}
}
