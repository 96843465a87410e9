package build_test

import (
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"github.com/outrigger-mesh/outrigger/e2e/images/build"
)

// emptyCache gives this test a cache of its own, but Go's.
func emptyCache(t *testing.T) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "env", "GOCACHE").Output()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("GOCACHE", strings.TrimSpace(string(out)))
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
}

// TestPushedAndArchivedAreTheSame pushes an image to a registry in this
// process, and builds it again from nothing.
func TestPushedAndArchivedAreTheSame(t *testing.T) {
	emptyCache(t)
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	prefix := strings.TrimPrefix(server.URL, "http://") + "/project"

	pushed, err := build.Push(t.Context(), build.Config{Prefix: prefix, Tag: "v1"}, "bookstore")
	if err != nil {
		t.Fatal(err)
	}
	if len(pushed) != 1 || pushed[0].Reference != prefix+"/bookstore:v1" || pushed[0].Archive != "" {
		t.Fatalf("pushed: got %+v", pushed)
	}
	tag, err := name.NewTag(pushed[0].Reference)
	if err != nil {
		t.Fatal(err)
	}
	image, err := remote.Image(tag)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(image); err != nil {
		t.Error(err)
	}
	if got, err := image.Digest(); err != nil || got.String() != pushed[0].Digest {
		t.Errorf("the registry holds %s (%v), want %s", got, err, pushed[0].Digest)
	}
	config, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if config.Config.User != "65532:65532" || !slices.Equal(config.Config.Entrypoint, []string{"/bookstore"}) {
		t.Errorf("config: got user %q, entrypoint %q", config.Config.User, config.Config.Entrypoint)
	}

	emptyCache(t)
	out := t.TempDir()
	built, err := build.Build(t.Context(), build.Config{Out: out, Version: "v1"}, "bookstore")
	if err != nil {
		t.Fatal(err)
	}
	want := build.Image{
		Name: "bookstore", Reference: "outrigger.local/bookstore:dev",
		Digest: pushed[0].Digest, Archive: filepath.Join(out, "bookstore.tar"),
	}
	if len(built) != 1 || built[0] != want {
		t.Errorf("built: got %+v, want %+v", built, want)
	}
	if info, err := os.Stat(want.Archive); err != nil || info.Size() == 0 {
		t.Errorf("archive: %v", err)
	}
}

func TestProgramsKnowTheirVersion(t *testing.T) {
	emptyCache(t)
	if _, err := build.Build(t.Context(), build.Config{Tag: "v1.2.3", Out: t.TempDir()}, "bookstore"); err != nil {
		t.Fatal(err)
	}
	programs, err := filepath.Glob(filepath.Join(os.Getenv("XDG_CACHE_HOME"), "outrigger/images/binaries/*/*/bookstore"))
	if err != nil || len(programs) != 1 {
		t.Fatalf("got programs %v, %v; want one", programs, err)
	}
	out, err := exec.CommandContext(t.Context(), programs[0], "--version").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "v1.2.3") {
		t.Errorf("bookstore --version: got %s, %v; want v1.2.3", out, err)
	}
}

func TestBuildRefuses(t *testing.T) {
	cases := map[string]struct {
		reason string
		config build.Config
		names  []string
		want   string
	}{
		"UnknownImage": {
			reason: "a typing error is answered with the names that there are",
			names:  []string{"outrigerd"}, want: "outriggerd, outrigger-init, outrigger-proxy, bookstore, client",
		},
		"PrefixWithoutHost": {
			reason: "kubelet would put a public registry's name before it",
			config: build.Config{Prefix: "mine"}, want: "outrigger.local/mine",
		},
		"PrefixThatIsNoName": {
			reason: "a URL is not the beginning of an image's name",
			config: build.Config{Prefix: "http://outrigger.local"}, want: "http://outrigger.local",
		},
		"TagThatIsNone": {
			reason: "the message says which tag",
			config: build.Config{Tag: "a b"}, want: `tag "a b"`,
		},
		"OutsideOfTheModule": {
			reason: "there is nothing to build",
			config: build.Config{Module: "/"}, want: "not inside a checkout",
		},
		"UnknownArchitecture": {
			reason: "Go's error names what it was told",
			config: build.Config{Arch: "z80"}, names: []string{"bookstore"}, want: "z80",
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			tc.config.Out = t.TempDir()
			_, err := build.Build(t.Context(), tc.config, tc.names...)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%s: got %v, want an error with %q", tc.reason, err, tc.want)
			}
		})
	}
}
