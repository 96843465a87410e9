package local

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

const (
	spireModule = "github.com/spiffe/spire"
	// spirePlugins is a file of the module that builds SPIRE. It lists the plugins that
	// stay, as their packages below pkg.
	spirePlugins = "plugins.txt"
)

// copySPIRE writes the source of SPIRE to target, in the version that the module at
// source requires, without the plugins that this does not list.
func copySPIRE(ctx context.Context, source, target string) error {
	list, err := os.ReadFile(filepath.Join(source, spirePlugins))
	if err != nil {
		return err
	}
	if _, err := output(ctx, source, "go", "mod", "download", spireModule); err != nil {
		return err
	}
	folder, err := output(ctx, source, "go", "list", "-m", "-f", "{{.Dir}}", spireModule)
	if err != nil {
		return err
	}
	if err := os.RemoveAll(target); err != nil { // of a build that was killed
		return err
	}
	if err := os.CopyFS(target, os.DirFS(strings.TrimSpace(folder))); err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(target, "pkg", "*", "catalog", "*.go"))
	if err != nil {
		return err
	}
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if err := os.WriteFile(file, withoutPlugins(content, strings.Fields(string(list))), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// withoutPlugins returns a file of SPIRE's catalogues without the lines that import
// plugins which are not kept, and those that list them as built in.
func withoutPlugins(file []byte, kept []string) []byte {
	imported := regexp.MustCompile(`^\s*(\w+ )?"` + spireModule + `/pkg/(\w+/plugin/\w+/(\w+))"\s*$`)
	builtIn := regexp.MustCompile(`^\s*(\w+)\.BuiltIn\(\),\s*$`)
	dropped := map[string]bool{} // the names of packages in this file
	var out bytes.Buffer
	for line := range bytes.Lines(file) {
		if m := imported.FindSubmatch(line); m != nil && !slices.Contains(kept, string(m[2])) {
			name := strings.TrimSpace(string(m[1]))
			if name == "" {
				name = string(m[3])
			}
			dropped[name] = true
			continue
		}
		if m := builtIn.FindSubmatch(line); m != nil && dropped[string(m[1])] {
			continue
		}
		out.Write(line)
	}
	return out.Bytes()
}
