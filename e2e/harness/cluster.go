package harness

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/go-logr/logr"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/outrigger-mesh/outrigger/e2e/cluster/local"
	"github.com/outrigger-mesh/outrigger/e2e/images/build"
)

// SystemNamespace is where the mesh is installed.
const SystemNamespace = "outrigger-system"

// A Cluster is a running cluster whose nodes have the mesh's images.
type Cluster struct {
	Config     *rest.Config
	Client     client.Client
	Set        kubernetes.Interface
	Kubeconfig string
	// Ours says that it is the cluster of this machine, so that its interfaces can
	// be looked at.
	Ours bool

	source      string // root of the repository
	cli         string // the outrigger binary
	prefix, tag string
	out         io.Writer
}

// Open brings up the cluster of this machine with images made from the working
// tree, all of them where none is named, or connects to KUBECONFIG when
// IMAGE_PREFIX (and IMAGE_TAG) say where its nodes find the images. It tells out
// what it does.
func Open(ctx context.Context, source string, out io.Writer, images ...string) (*Cluster, error) {
	source, err := filepath.Abs(source)
	if err != nil {
		return nil, fmt.Errorf("find the repository: %w", err)
	}
	c := &Cluster{source: source, prefix: os.Getenv("IMAGE_PREFIX"), tag: os.Getenv("IMAGE_TAG"), Kubeconfig: os.Getenv("KUBECONFIG"), out: out}
	if c.prefix == "" {
		if err := c.openLocal(ctx, images); err != nil {
			return nil, err
		}
	} else if c.Kubeconfig == "" {
		return nil, fmt.Errorf("IMAGE_PREFIX is %s, but KUBECONFIG does not say in which cluster", c.prefix)
	}
	if c.tag == "" {
		c.tag = build.DefaultTag
	}
	if c.Config, err = clientcmd.BuildConfigFromFlags("", c.Kubeconfig); err != nil {
		return nil, fmt.Errorf("read kubeconfig %s: %w", c.Kubeconfig, err)
	}
	c.Config.QPS, c.Config.Burst = 200, 400
	log.SetLogger(logr.Discard()) // the client's library wants one, and has nothing to say
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientscheme.AddToScheme, apiextensionsv1.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, fmt.Errorf("prepare clients: %w", err)
		}
	}
	if c.Client, err = client.New(c.Config, client.Options{Scheme: scheme}); err != nil {
		return nil, fmt.Errorf("connect to the cluster: %w", err)
	}
	if c.Set, err = kubernetes.NewForConfig(c.Config); err != nil {
		return nil, fmt.Errorf("connect to the cluster: %w", err)
	}
	return c, c.buildCLI(ctx)
}

func (c *Cluster) openLocal(ctx context.Context, names []string) error {
	c.Ours, c.prefix = true, build.DefaultPrefix
	cluster := local.Config{Source: c.source, Out: c.out}
	if err := local.Up(ctx, cluster); err != nil {
		return fmt.Errorf("bring up the cluster: %w", err)
	}
	started := time.Now()
	images, err := build.Build(ctx, build.Config{Module: c.source}, names...)
	if err != nil {
		return fmt.Errorf("build the images: %w", err)
	}
	var archives []string
	for _, image := range images {
		archives = append(archives, image.Archive)
	}
	c.Step(started, "%d images built", len(images))
	started = time.Now()
	if err := local.Load(ctx, cluster, archives...); err != nil {
		return fmt.Errorf("load the images: %w", err)
	}
	c.Step(started, "%d images loaded into the cluster", len(images))
	c.Kubeconfig, err = local.Kubeconfig(cluster)
	return err
}

// buildCLI builds the outrigger command, so that installing is what a user does.
func (c *Cluster) buildCLI(ctx context.Context) error {
	c.cli = filepath.Join(c.source, "bin", "outrigger")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", c.cli, "./cmd/outrigger")
	build.Dir, build.Env = c.source, append(os.Environ(), "CGO_ENABLED=0")
	if text, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build the outrigger command: %w\n%s", err, text)
	}
	return nil
}

// Image returns the reference of one of the project's images.
func (c *Cluster) Image(name string) string { return c.prefix + "/" + name + ":" + c.tag }

// CLI runs the outrigger command against the cluster and returns what it wrote.
func (c *Cluster) CLI(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, c.cli, args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.Kubeconfig)
	text, err := cmd.CombinedOutput()
	if err != nil {
		return string(text), fmt.Errorf("outrigger %s: %w\n%s", strings.Join(args, " "), err, text)
	}
	return string(text), nil
}

// Install installs the mesh with the images of the cluster and waits until it is
// ready. Values are written as for --set.
func (c *Cluster) Install(ctx context.Context, values ...string) (string, error) {
	args := append([]string{"install"}, c.ImageFlags()...)
	for _, value := range values {
		args = append(args, "--set", value)
	}
	return c.CLI(ctx, args...)
}

// ImageFlags are the flags of the outrigger command that name the cluster's images.
func (c *Cluster) ImageFlags() []string {
	return []string{"--set", "image.prefix=" + c.prefix, "--set", "image.tag=" + c.tag}
}

// Step tells what was done and how long it took.
func (c *Cluster) Step(started time.Time, format string, args ...any) {
	fmt.Fprintf(c.out, "%7.1fs  %s\n", time.Since(started).Seconds(), fmt.Sprintf(format, args...))
}
