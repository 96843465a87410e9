package local

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestToolFolderFollowsTheSource(t *testing.T) {
	c := Config{Tools: "/tools"}
	source := t.TempDir()
	folder := func() string {
		t.Helper()
		got, err := c.toolFolder(t.Context(), "etcd", source)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	write := func(name, content string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(source, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	seen := map[string]string{}
	check := func(what string) {
		t.Helper()
		got := folder()
		if other, ok := seen[got]; ok {
			t.Errorf("%s and %s share the folder %s", what, other, got)
		}
		if !strings.HasPrefix(got, "/tools/etcd-") {
			t.Errorf("%s: got folder %s, want it below /tools and named for the module", what, got)
		}
		seen[got] = what
	}
	write("go.mod", "module x\n\ngo 1.26\n")
	check("one version")
	write("go.mod", "module x\n\ngo 1.26\n\n")
	check("another version")
	write("go.sum", "sum")
	check("another sum")
	write("main.go", "package main")
	check("another main")
	write("plugins.txt", "server/plugin/keymanager/memory")
	check("other plugins")

	before := folder()
	write("README.md", "hello")
	if got := folder(); got != before {
		t.Errorf("a file that does not enter the program moves it from %s to %s", before, got)
	}
}

func TestBuildUnknownProgram(t *testing.T) {
	_, err := Config{}.build(t.Context(), "kube-apisever")
	if err == nil || !strings.Contains(err.Error(), `"kube-apisever"`) {
		t.Errorf("got error %v, want one that names the program", err)
	}
}

func TestBuildOnceLeavesNothingHalfDone(t *testing.T) {
	source, target := t.TempDir(), filepath.Join(t.TempDir(), "out", "x")
	for name, content := range map[string]string{"go.mod": "module x\n\ngo 1.26\n", "main.go": "package main\n\nfunc main() { undefined() }\n"} {
		if err := os.WriteFile(filepath.Join(source, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := buildOnce(t.Context(), source, ".", target); err == nil || !strings.Contains(err.Error(), "undefined: undefined") {
		t.Errorf("got error %v, want the compiler's", err)
	}
	if _, err := os.Stat(target); err == nil {
		t.Error("a program that does not compile was left in the cache")
	}
	if err := os.WriteFile(filepath.Join(source, "main.go"), []byte("package main\n\nfunc main() {}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := buildOnce(t.Context(), source, ".", target); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(target); err != nil {
		t.Error(err)
	}
}
