// Package build makes Outrigger's images and those of its demo: as archives
// that a container runtime imports, or in a registry.
//
// The images of a user and those of the tests come out of the same code, with
// the same digests. What is in each image is said in recipes.go; how images and
// layers are written, in package oci. Compressed layers, Debian's packages,
// Envoy and Go's binaries are kept in the user's cache folder, so that a second
// run takes a second or two.
package build

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/go-logr/logr"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/outrigger-mesh/outrigger/e2e/images/cache"
	"github.com/outrigger-mesh/outrigger/e2e/images/oci"
)

// DefaultPrefix begins the names of images that no registry holds. It has the
// form of a host with a dot because kubelet and containerd put the name of a
// public registry before any other, and would then not find what was imported.
const DefaultPrefix = "outrigger.local"

// DefaultTag is the tag of images that are not released.
const DefaultTag = "dev"

// Config says where the sources are, and where images go. The zero value is
// what the tests and the demo use.
type Config struct {
	// Module is a folder inside the module whose commands are built: where
	// empty, the working directory.
	Module string
	// Prefix is what the names of images begin with, before "/<image>":
	// DefaultPrefix where empty.
	Prefix string
	// Tag is the tag of all images: DefaultTag where empty.
	Tag string
	// Version is the variable main.version of the programs: Tag where empty.
	Version string
	// Arch is the architecture in Go's spelling, "amd64" or "arm64": this
	// machine's where empty.
	Arch string
	// Out is the folder for archives: where empty, one in the user's cache,
	// whose files stay until the next Build.
	Out string
	// Log is told of each image as it is done. The zero value is silent.
	Log logr.Logger
}

// An Image is one that was built.
type Image struct {
	Name      string // "outriggerd"
	Reference string // "outrigger.local/outriggerd:dev"
	Digest    string // "sha256:…", the same in an archive and in a registry
	Archive   string // path of the archive; empty after Push
}

// Names returns the names of all images, in the order in which they are built.
func Names() []string {
	var names []string
	for _, r := range recipes() {
		names = append(names, r.name)
	}
	return names
}

// Build makes the named images, or all of them when none is named, and writes
// each to "<Out>/<name>.tar". It waits for another Build on the same machine to
// end.
func Build(ctx context.Context, cfg Config, names ...string) ([]Image, error) {
	b, err := newBuilder(ctx, cfg)
	if err != nil {
		return nil, err
	}
	host, _, _ := strings.Cut(b.Prefix, "/")
	if !strings.ContainsAny(host, ".:") && host != "localhost" {
		return nil, fmt.Errorf("image prefix %q: it must begin with a name with a dot, such as %s/%s, "+
			"or a cluster will look for the image in a public registry", b.Prefix, DefaultPrefix, b.Prefix)
	}
	return b.each(ctx, names, func(made *Image, image v1.Image) error {
		made.Archive = filepath.Join(b.Out, made.Name+".tar")
		return oci.WriteArchive(made.Archive, made.Reference, image)
	})
}

// Push makes the named images, or all of them when none is named, and puts each
// into the registry that Prefix names, with the credentials that docker login
// or podman login left.
func Push(ctx context.Context, cfg Config, names ...string) ([]Image, error) {
	b, err := newBuilder(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return b.each(ctx, names, func(made *Image, image v1.Image) error {
		tag, err := name.NewTag(made.Reference)
		if err != nil {
			return fmt.Errorf("name of image: %w", err)
		}
		return remote.Write(tag, image, remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain))
	})
}

// A builder has a Config without gaps, and the folders to work in.
type builder struct {
	Config
	layers   string // compressed layers
	binaries string // Go programs of this module
	lock     string
}

func newBuilder(ctx context.Context, cfg Config) (*builder, error) {
	folder, err := cache.Dir("images")
	if err != nil {
		return nil, err
	}
	b := &builder{Config: cfg, layers: filepath.Join(folder, "layers"), lock: filepath.Join(folder, "lock")}
	b.Prefix = strings.TrimSuffix(orElse(b.Prefix, DefaultPrefix), "/")
	b.Tag = orElse(b.Tag, DefaultTag)
	b.Version = orElse(b.Version, b.Tag)
	b.Arch = orElse(b.Arch, runtime.GOARCH)
	b.Out = orElse(b.Out, filepath.Join(folder, "archives"))
	if b.Module, err = moduleRoot(ctx, b.Module); err != nil {
		return nil, err
	}
	// Programs keep their place between runs, so that Go need not link again
	// what has not changed. Two checkouts would undo each other's work.
	b.binaries = filepath.Join(folder, "binaries", strings.ReplaceAll(strings.Trim(b.Module, "/"), "/", "_"), b.Arch)
	if strings.Contains(b.Prefix, "://") {
		return nil, fmt.Errorf("image prefix %q: names of images are not URLs, leave out what is before the host", b.Prefix)
	}
	if _, err := name.NewTag(b.reference("x")); err != nil {
		return nil, fmt.Errorf("image prefix %q, tag %q: %w", b.Prefix, b.Tag, err)
	}
	return b, nil
}

func orElse(value, fallback string) string {
	if value == "" {
		return fallback
	}
	return value
}

func moduleRoot(ctx context.Context, dir string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", "env", "GOMOD")
	cmd.Dir = dir
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("find Outrigger's module: %w", err)
	}
	file := strings.TrimSpace(string(out))
	if file == "" || file == os.DevNull {
		return "", errors.New("find Outrigger's module: this is not inside a checkout of it")
	}
	return filepath.Dir(file), nil
}

func (b *builder) reference(image string) string { return b.Prefix + "/" + image + ":" + b.Tag }

// each makes images and hands them to deliver, one after the other: Go's
// compiler keeps the machine busy as it is.
func (b *builder) each(ctx context.Context, names []string, deliver func(*Image, v1.Image) error) ([]Image, error) {
	chosen, err := choose(names)
	if err != nil {
		return nil, err
	}
	b.Log.Info("building images; the first time on a machine takes minutes", "count", len(chosen))
	unlock, err := cache.Lock(ctx, b.lock)
	if err != nil {
		return nil, err
	}
	defer unlock()
	images := make([]Image, 0, len(chosen))
	for _, r := range chosen {
		image, err := b.image(ctx, r)
		if err != nil {
			return nil, fmt.Errorf("build image %s: %w", r.name, err)
		}
		digest, err := image.Digest()
		if err != nil {
			return nil, fmt.Errorf("build image %s: %w", r.name, err)
		}
		made := Image{Name: r.name, Reference: b.reference(r.name), Digest: digest.String()}
		if err := deliver(&made, image); err != nil {
			return nil, fmt.Errorf("deliver image %s: %w", made.Reference, err)
		}
		b.Log.Info("built image", "reference", made.Reference, "digest", made.Digest)
		images = append(images, made)
	}
	return images, nil
}

// choose returns the recipes of the named images, or all of them.
func choose(names []string) ([]recipe, error) {
	all := recipes()
	if len(names) == 0 {
		return all, nil
	}
	for _, wanted := range names {
		if !slices.Contains(Names(), wanted) {
			return nil, fmt.Errorf("there is no image %q; there are %s", wanted, strings.Join(Names(), ", "))
		}
	}
	return slices.DeleteFunc(all, func(r recipe) bool { return !slices.Contains(names, r.name) }), nil
}

func (b *builder) image(ctx context.Context, r recipe) (v1.Image, error) {
	var layers []v1.Layer
	for _, part := range r.parts {
		files, err := part.files(ctx, b)
		if err != nil {
			return nil, err
		}
		layer, err := oci.NewLayer(b.layers, r.name+"-"+part.name+"-"+b.Arch, files)
		if err != nil {
			return nil, err
		}
		layers = append(layers, layer)
	}
	return oci.NewImage(b.Arch, r.config, layers...)
}

// program builds a command of this module and returns it as a file that lies in
// the root of an image, where its own name is enough to run it.
func (b *builder) program(ctx context.Context, pkg string) (oci.File, error) {
	program := filepath.Base(pkg)
	out := filepath.Join(b.binaries, program)
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath",
		// Stamping the commit would change every image with every commit.
		"-buildvcs=false",
		"-ldflags=-s -w -X main.version="+b.Version, "-o", out, pkg)
	cmd.Dir = b.Module
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+b.Arch)
	if diag, err := cmd.CombinedOutput(); err != nil {
		return oci.File{}, fmt.Errorf("go build %s: %w\n%s", pkg, err, diag)
	}
	return oci.File{Path: program, Source: out, Mode: 0o755}, nil
}
