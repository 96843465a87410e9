package internal_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// proof is a test as docs/security.md names it: the folder of its package, a dot,
// and its function.
var proof = regexp.MustCompile("`([a-z0-9/-]+)\\.((?:Test|Fuzz)[A-Za-z0-9]+)`")

// TestSecurityPageNamesTestsThatRun fails where docs/security.md promises a test
// that is not there, or that make test does not run, and where an attack has none.
func TestSecurityPageNamesTestsThatRun(t *testing.T) {
	page, err := os.ReadFile("../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	makefile, err := os.ReadFile("../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	_, integration, _ := strings.Cut(string(makefile), "\nINTEGRATION := ")
	integration, _, _ = strings.Cut(integration, "\n")
	for _, match := range proof.FindAllStringSubmatch(string(page), -1) {
		if why := missing(t, match[1], match[2], integration); why != "" {
			t.Errorf("docs/security.md names %s: %s", match[0], why)
		}
	}
	attacks := 0
	for line := range strings.Lines(string(page)) {
		if !strings.HasPrefix(line, "| ") || strings.HasPrefix(line, "| attack ") {
			continue
		}
		attacks++
		if !proof.MatchString(line) {
			t.Errorf("no test shows this attack: %s", line)
		}
	}
	if attacks < 40 {
		t.Errorf("the page has %d attacks; its tables have lost some", attacks)
	}
}

// missing says why make test does not run a test, or nothing.
func missing(t *testing.T, pkg, name, integration string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("..", pkg, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(text), "\nfunc "+name+"(") {
			continue
		}
		first, _, _ := strings.Cut(string(text), "\n")
		switch tag, tagged := strings.CutPrefix(first, "//go:build "); {
		case !tagged, tag == "e2e" && pkg == "e2e":
			return ""
		case (tag == "integration" || tag == "netns") && strings.Contains(" "+integration+" ", " ./"+pkg+" "):
			return ""
		default:
			return "make test does not run what is built with " + tag + " there"
		}
	}
	return "there is no such test in " + pkg
}
