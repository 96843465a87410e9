package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/outrigger-mesh/outrigger/e2e/images/oci"
)

// The images that the cluster itself runs. No registry has them.
const (
	pauseImage   = "outrigger.dev/cluster/pause:local"
	corednsImage = "outrigger.dev/cluster/coredns:local"
)

// ownImages returns the archives of the images that the cluster itself runs,
// making those that the cache does not hold.
func (c Config) ownImages(ctx context.Context, tools programs) ([]string, error) {
	coredns := filepath.Join(filepath.Dir(tools["coredns"]), "coredns.tar")
	if err := imageOf(tools["coredns"], coredns, corednsImage, v1.Config{
		Entrypoint: []string{"/coredns"},
		// CoreDNS needs no privilege beyond the low port that its pod grants.
		User: "65532:65532",
	}); err != nil {
		return nil, err
	}
	pause, err := c.buildPause(ctx)
	if err != nil {
		return nil, err
	}
	archive := filepath.Join(filepath.Dir(pause), "pause.tar")
	return []string{archive, coredns}, imageOf(pause, archive, pauseImage, v1.Config{
		Entrypoint: []string{"/pause"},
		User:       "65535:65535",
	})
}

// buildPause returns the path of the pause program, built from its source here.
func (c Config) buildPause(ctx context.Context) (string, error) {
	source, err := c.source("e2e", "cluster", "pause")
	if err != nil {
		return "", err
	}
	folder, err := c.toolFolder(ctx, "pause", source)
	if err != nil {
		return "", err
	}
	target := filepath.Join(folder, "pause")
	return target, buildOnce(ctx, source, ".", target)
}

// imageOf makes the archive of an image that holds one static program, unless
// it is there already.
func imageOf(program, archive, reference string, config v1.Config) error {
	if _, err := os.Stat(archive); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	name := filepath.Base(program)
	layer, err := oci.NewLayer(filepath.Join(filepath.Dir(program), "layers"), name, []oci.File{
		{Path: name, Source: program, Mode: 0o755},
	})
	if err != nil {
		return fmt.Errorf("make image %s: %w", reference, err)
	}
	image, err := oci.NewImage(runtime.GOARCH, config, layer)
	if err != nil {
		return fmt.Errorf("make image %s: %w", reference, err)
	}
	return oci.WriteArchive(archive, reference, image)
}

// Load imports image archives (OCI layouts or docker save's) into the cluster.
// Pods use them by the names in the archives with an imagePullPolicy of Never
// or IfNotPresent. An image of the same name is replaced for pods to come.
func Load(ctx context.Context, config Config, archives ...string) error {
	c, err := config.complete()
	if err != nil {
		return err
	}
	if _, ok, err := c.loadState(); err != nil || !ok {
		return errors.Join(err, errNotUp)
	}
	tools, err := c.build(ctx, "ctr")
	if err != nil {
		return err
	}
	return c.load(ctx, tools, archives...)
}

func (c Config) load(ctx context.Context, tools programs, archives ...string) error {
	for _, archive := range archives {
		path, err := filepath.Abs(archive)
		if err != nil {
			return err
		}
		cmd := exec.CommandContext(ctx, tools["ctr"], "--address", c.socket(), "--namespace", "k8s.io", "images", "import", path)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("import image archive %s: %w\n%s", archive, err, out)
		}
	}
	return nil
}
