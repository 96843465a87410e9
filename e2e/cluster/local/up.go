package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

var errNotUp = errors.New("the cluster is not up")

// Up brings the cluster up and returns when its node and its name server are
// ready. A cluster that is up and well is left as it is; any other one, and
// what a crash or reboot left of one, is taken away first. It needs root.
func Up(ctx context.Context, config Config) error {
	c, err := config.complete()
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("bring up a cluster: only root may make network interfaces and cgroups")
	}
	if err := os.MkdirAll(c.State, 0o700); err != nil {
		return err
	}
	unlock, err := lock(c.lockFile())
	if err != nil {
		return err
	}
	defer unlock()

	tools, err := c.setup(ctx)
	if err != nil {
		return err
	}
	record, exists, err := c.loadState()
	if err != nil {
		return err
	}
	if exists {
		if slices.Equal(record.Tools, tools.folders()) && c.status(ctx, record).Ready {
			fmt.Fprintln(c.Out, "the cluster is up")
			return nil
		}
		if err := c.step("remove an earlier cluster", func() error { return c.clean(ctx, record) }); err != nil {
			return err
		}
	}
	if err := c.start(ctx, tools); err != nil {
		return fmt.Errorf("%w\nlogs are in %s", err, c.logs())
	}
	fmt.Fprintf(c.Out, "\nthe cluster is up; to look at it:\n  export KUBECONFIG=%s\n  %s get pods --all-namespaces\n", c.kubeconfig(), tools["kubectl"])
	return nil
}

// Down stops the cluster, undoes all it did to this machine and deletes its
// data. The logs stay until the next Up. It is no error if there is none.
func Down(ctx context.Context, config Config) error {
	c, err := config.complete()
	if err != nil {
		return err
	}
	if _, exists, err := c.loadState(); err != nil || !exists {
		return err
	}
	unlock, err := lock(c.lockFile())
	if err != nil {
		return err
	}
	defer unlock()
	record, exists, err := c.loadState()
	if err != nil || !exists {
		return err
	}
	return c.step("stop the cluster", func() error { return c.clean(ctx, record) })
}

// Kubeconfig returns the path of the kubeconfig of the cluster's administrator,
// and an error if the cluster is not up.
func Kubeconfig(config Config) (string, error) {
	c, err := config.complete()
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(c.kubeconfig()); err != nil {
		return "", errNotUp
	}
	return c.kubeconfig(), nil
}

func (c Config) lockFile() string { return filepath.Join(c.State, "lock") }

// programNames returns the programs of modules in the order of building.
func programNames(modules []module) []string {
	var names []string
	for _, m := range modules {
		for name := range m.programs {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// folders returns the cache folders that the programs lie in, which say what
// version each is.
func (p programs) folders() []string {
	var folders []string
	for _, path := range p {
		folders = append(folders, filepath.Dir(path))
	}
	slices.Sort(folders)
	return slices.Compact(folders)
}

// start brings up a cluster where there is none.
func (c Config) start(ctx context.Context, tools programs) error {
	resolvers := findResolvers(ctx)
	s := c.settings(hasIPv6(), resolvers)
	if err := checkNetwork(ctx, s); err != nil {
		return err
	}
	plan, err := c.plan(ctx, s)
	if err != nil {
		return err
	}
	record, err := c.prepare(ctx, s, plan, tools)
	if err != nil {
		return err
	}
	var archives []string
	if err := c.step("make the images of pause and CoreDNS", func() error {
		archives, err = c.ownImages(ctx, tools)
		return err
	}); err != nil {
		return err
	}
	if err := c.step("make the network", func() error { return c.setUpNetwork(ctx, s, record) }); err != nil {
		return err
	}
	var client *rest.Config
	if err := c.step("start containerd, etcd and kube-apiserver", func() error {
		if err := c.startAll(ctx, record, tools, c.foundation(plan, tools)); err != nil {
			return err
		}
		group, ctx := errgroup.WithContext(ctx)
		group.Go(func() error {
			if err := c.waitForContainerd(ctx, record); err != nil {
				return err
			}
			return c.load(ctx, tools, archives...)
		})
		group.Go(func() (err error) {
			client, err = waitForAPIServer(ctx, plan.kubeconfig("admin"), c.failedCheck(record))
			return err
		})
		return group.Wait()
	}); err != nil {
		return err
	}
	if err := c.step("start the node and CoreDNS", func() error {
		if err := c.startAll(ctx, record, tools, c.node(plan, s)); err != nil {
			return err
		}
		_, err := output(ctx, "/", tools["kubectl"], "--kubeconfig", plan.kubeconfig("admin"),
			"apply", "--server-side", "--filename", filepath.Join(c.State, "config", "coredns.yaml"))
		return err
	}); err != nil {
		return err
	}
	clients, err := kubernetes.NewForConfig(client)
	if err != nil {
		return err
	}
	if err := c.step("wait for the node", func() error { return c.waitFor(ctx, record, clients, nodeReady) }); err != nil {
		return err
	}
	if err := c.step("wait for CoreDNS", func() error { return c.waitFor(ctx, record, clients, nameServerReady) }); err != nil {
		return err
	}
	// Last, so that a kubeconfig means a cluster that can be used.
	return os.Rename(plan.kubeconfig("admin"), c.kubeconfig())
}

// prepare writes the files of a new cluster and the first record of it.
func (c Config) prepare(ctx context.Context, s settings, plan controlPlane, tools programs) (*state, error) {
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	record := &state{Boot: boot, Tools: tools.folders(), Run: c.runFolder(), Cgroup: c.id()}
	if err := c.saveState(*record); err != nil {
		return nil, err
	}
	if err := os.RemoveAll(c.logs()); err != nil {
		return nil, err
	}
	for _, folder := range []string{c.logs(), record.Run} {
		if err := os.MkdirAll(folder, 0o700); err != nil {
			return nil, err
		}
	}
	if err := makeCgroups(record.Cgroup); err != nil {
		return nil, err
	}
	if err := plan.writeCertificates(); err != nil {
		return nil, fmt.Errorf("write certificates: %w", err)
	}
	return record, c.writeConfiguration(s)
}

// startAll starts the components in order and records each.
func (c Config) startAll(ctx context.Context, record *state, tools programs, components []component) error {
	for _, component := range components {
		p, err := startDetached(ctx, tools[component.name], c.log(component.name), component.env, component.flags...)
		if err != nil {
			return err
		}
		record.Processes = append(record.Processes, p)
		if err := c.saveState(*record); err != nil {
			return err
		}
	}
	return nil
}

func (c Config) log(component string) string { return filepath.Join(c.logs(), component+".log") }

// failedCheck returns a function that returns an error as soon as one of the
// recorded processes has ended.
func (c Config) failedCheck(record *state) func() error {
	started := slices.Clone(record.Processes)
	return func() error {
		for _, p := range started {
			if !p.alive() {
				return fmt.Errorf("%s ended early:\n%s", p.Name, tail(c.log(p.Name)))
			}
		}
		return nil
	}
}

// patience is how long each part of the cluster may take to get ready.
const patience = 2 * time.Minute

// waitFor returns when ready does not return an error any more.
func (c Config) waitFor(ctx context.Context, record *state, clients kubernetes.Interface, ready func(context.Context, kubernetes.Interface) error) error {
	failed := c.failedCheck(record)
	var last error
	err := wait.PollUntilContextTimeout(ctx, 200*time.Millisecond, patience, true, func(ctx context.Context) (bool, error) {
		if err := failed(); err != nil {
			return false, err
		}
		last = ready(ctx, clients)
		return last == nil, nil
	})
	if err != nil {
		return errors.Join(err, last)
	}
	return nil
}

func (c Config) waitForContainerd(ctx context.Context, record *state) error {
	return c.waitFor(ctx, record, nil, func(context.Context, kubernetes.Interface) error {
		_, err := os.Stat(c.socket())
		return err
	})
}

// nodeReady returns nil if the cluster's node is ready, and why not otherwise.
func nodeReady(ctx context.Context, clients kubernetes.Interface) error {
	node, err := clients.CoreV1().Nodes().Get(ctx, nodeName, metav1.GetOptions{})
	if err != nil {
		return err
	}
	for _, condition := range node.Status.Conditions {
		if condition.Type == corev1.NodeReady {
			if condition.Status == corev1.ConditionTrue {
				return nil
			}
			return fmt.Errorf("the node is not ready: %s", condition.Message)
		}
	}
	return errors.New("the node has not reported yet")
}

// nameServerReady returns nil if CoreDNS is ready, and why not otherwise.
func nameServerReady(ctx context.Context, clients kubernetes.Interface) error {
	coredns, err := clients.AppsV1().Deployments("kube-system").Get(ctx, "coredns", metav1.GetOptions{})
	if err != nil {
		return err
	}
	for _, condition := range coredns.Status.Conditions {
		if condition.Type == appsv1.DeploymentAvailable && condition.Status == corev1.ConditionTrue {
			return nil
		}
	}
	return errors.New("CoreDNS is not ready")
}

// clientsOf returns clients for the cluster that kubeconfig names.
func clientsOf(kubeconfig string) (kubernetes.Interface, error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, err
	}
	config.Timeout = 5 * time.Second
	return kubernetes.NewForConfig(config)
}
