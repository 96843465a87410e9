package oci_test

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"github.com/outrigger-mesh/outrigger/e2e/images/oci"
)

// program writes a file as a compiler would, with the time of now.
func program(t *testing.T, content string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(name, []byte(content), 0o700); err != nil {
		t.Fatal(err)
	}
	return name
}

func some(source string) []oci.File {
	return []oci.File{
		{Path: "usr/bin/program", Source: source, Mode: 0o755},
		{Path: "bin/sh", Link: "/usr/bin/program"},
		{Path: "etc/passwd", Data: []byte("root\n")},
		{Path: "tmp", Dir: true, Mode: 0o777},
		{Path: "empty"},
	}
}

func newLayer(t *testing.T, dir string, files []oci.File) v1.Layer {
	t.Helper()
	layer, err := oci.NewLayer(dir, "slot", files)
	if err != nil {
		t.Fatal(err)
	}
	return layer
}

func digestOf(t *testing.T, layer v1.Layer) string {
	t.Helper()
	digest, err := layer.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return digest.String()
}

func TestLayerHoldsFilesAndNothingOfThisMachine(t *testing.T) {
	layer := newLayer(t, t.TempDir(), some(program(t, "code")))
	if err := validate.Layer(layer); err != nil {
		t.Fatal(err)
	}
	content, err := layer.Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = content.Close() }()
	type entry struct {
		Name, Link, Data string
		Mode             int64
	}
	var got []entry
	archive := tar.NewReader(content)
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, entry{header.Name, header.Linkname, string(data), header.Mode})
		if header.Uid != 0 || header.Gid != 0 || header.Uname != "" || !header.ModTime.Equal(time.Unix(0, 0)) {
			t.Errorf("%s: owner %d:%d %q, time %s; want root without a name and no time",
				header.Name, header.Uid, header.Gid, header.Uname, header.ModTime)
		}
	}
	want := []entry{
		{Name: "bin/", Mode: 0o755},
		{Name: "bin/sh", Link: "/usr/bin/program", Mode: 0o777},
		{Name: "empty", Mode: 0o644},
		{Name: "etc/", Mode: 0o755},
		{Name: "etc/passwd", Data: "root\n", Mode: 0o644},
		{Name: "tmp/", Mode: 0o777},
		{Name: "usr/", Mode: 0o755},
		{Name: "usr/bin/", Mode: 0o755},
		{Name: "usr/bin/program", Data: "code", Mode: 0o755},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("layer (-want +got):\n%s", diff)
	}
}

func TestEqualFilesGiveAnEqualDigest(t *testing.T) {
	files := some(program(t, "code"))
	want := digestOf(t, newLayer(t, t.TempDir(), files))

	slices.Reverse(files)
	if got := digestOf(t, newLayer(t, t.TempDir(), files)); got != want {
		t.Error("another order of files gives another digest")
	}
	if got := digestOf(t, newLayer(t, t.TempDir(), some(program(t, "code")))); got != want {
		t.Error("another place and time of a source gives another digest")
	}
	if got := digestOf(t, newLayer(t, t.TempDir(), some(program(t, "c0de")))); got == want {
		t.Error("another content of a source gives the same digest")
	}
}

func TestLayersAreKeptAndReplaced(t *testing.T) {
	dir := t.TempDir()
	first := digestOf(t, newLayer(t, dir, some(program(t, "first"))))
	kept := onlyArchive(t, dir)
	before, err := os.Stat(kept)
	if err != nil {
		t.Fatal(err)
	}
	if got := digestOf(t, newLayer(t, dir, some(program(t, "first")))); got != first {
		t.Errorf("kept layer has digest %s, want %s", got, first)
	}
	after, err := os.Stat(kept)
	if err != nil || !os.SameFile(before, after) || !before.ModTime().Equal(after.ModTime()) {
		t.Errorf("a kept layer was written again (%v)", err)
	}

	// An archive that lost its end, by a full disk or a crash, is made again.
	if err := os.Truncate(kept, 10); err != nil {
		t.Fatal(err)
	}
	again := newLayer(t, dir, some(program(t, "first")))
	if err := validate.Layer(again); err != nil || digestOf(t, again) != first {
		t.Errorf("a damaged layer was not made again: %v", err)
	}

	// The slots "slot" and "slot-b" do not disturb each other.
	if _, err := oci.NewLayer(dir, "slot-b", nil); err != nil {
		t.Fatal(err)
	}
	newLayer(t, dir, some(program(t, "second")))
	archives, err := filepath.Glob(filepath.Join(dir, "*.tar.gz"))
	if err != nil || len(archives) != 2 || slices.Contains(archives, kept) {
		t.Errorf("after a change the folder holds %v (%v), want one archive for each slot", archives, err)
	}
}

func onlyArchive(t *testing.T, dir string) string {
	t.Helper()
	archives, err := filepath.Glob(filepath.Join(dir, "*.tar.gz"))
	if err != nil || len(archives) != 1 {
		t.Fatalf("got archives %v, %v; want one", archives, err)
	}
	return archives[0]
}

func TestLayerRefuses(t *testing.T) {
	cases := map[string]struct {
		files []oci.File
		want  string
	}{
		"AbsolutePath":   {files: []oci.File{{Path: "/etc/passwd"}}, want: `"/etc/passwd"`},
		"PathUpwards":    {files: []oci.File{{Path: "../etc/passwd"}}, want: `"../etc/passwd"`},
		"TheRootItself":  {files: []oci.File{{Path: "."}}, want: `"."`},
		"Twice":          {files: []oci.File{{Path: "a"}, {Path: "a"}}, want: `"a" is given twice`},
		"FileAsFolder":   {files: []oci.File{{Path: "a"}, {Path: "a/b"}}, want: `"a/b" lies below "a"`},
		"AbsentSource":   {files: []oci.File{{Path: "a", Source: "/nonexistent"}}, want: "/nonexistent"},
		"LinkAsFolder":   {files: []oci.File{{Path: "a", Link: "b"}, {Path: "a/b/c"}}, want: `"a/b/c" lies below "a"`},
		"FolderAsSource": {files: []oci.File{{Path: "a", Source: "/"}}, want: "is a directory"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			_, err := oci.NewLayer(t.TempDir(), "slot", tc.files)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want an error with %s", err, tc.want)
			}
		})
	}
}

// TestArchiveIsAnImage reads an archive back with another implementation.
func TestArchiveIsAnImage(t *testing.T) {
	image, err := oci.NewImage("arm64", v1.Config{User: "1500:1500", Entrypoint: []string{"/program"}},
		newLayer(t, t.TempDir(), some(program(t, "code"))))
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(image); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "new", "image.tar")
	if err := oci.WriteArchive(name, "outrigger.local/program:dev", image); err != nil {
		t.Fatal(err)
	}
	if left, err := filepath.Glob(filepath.Join(filepath.Dir(name), ".*")); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}

	index, err := layout.ImageIndexFromPath(untar(t, name))
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(index); err != nil {
		t.Fatal(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	want, err := image.Digest()
	if err != nil {
		t.Fatal(err)
	}
	entry := manifest.Manifests[0]
	if entry.Digest != want || entry.Annotations["io.containerd.image.name"] != "outrigger.local/program:dev" {
		t.Errorf("index holds %s as %v, want %s", entry.Digest, entry.Annotations, want)
	}
	if entry.Platform.String() != "linux/arm64" {
		t.Errorf("platform: got %s, want linux/arm64", entry.Platform)
	}
	read, err := index.Image(want)
	if err != nil {
		t.Fatal(err)
	}
	config, err := read.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if config.Config.User != "1500:1500" || !slices.Equal(config.Config.Entrypoint, []string{"/program"}) {
		t.Errorf("config: got %+v", config.Config)
	}
	var raw map[string]any
	text, err := read.RawManifest()
	if err != nil || json.Unmarshal(text, &raw) != nil {
		t.Fatalf("manifest: %s, %v", text, err)
	}
	if raw["mediaType"] != "application/vnd.oci.image.manifest.v1+json" {
		t.Errorf("manifest: media type %v, want OCI's", raw["mediaType"])
	}
}

func untar(t *testing.T, name string) string {
	t.Helper()
	file, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	dir := t.TempDir()
	archive := tar.NewReader(file)
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return dir
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		target := filepath.Join(dir, header.Name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(target), 0o755), os.WriteFile(target, data, fs.FileMode(header.Mode))); err != nil {
			t.Fatal(err)
		}
	}
}
