package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	"helm.sh/helm/v4/pkg/action"
	"helm.sh/helm/v4/pkg/cli/values"
	"helm.sh/helm/v4/pkg/kube"
	"helm.sh/helm/v4/pkg/storage/driver"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilversion "k8s.io/apimachinery/pkg/util/version"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// oldest is the oldest Kubernetes whose kubelet runs native sidecars without
// being asked to.
const oldest = "1.29.0"

// defaultNamespace is where the control plane lives unless it was told otherwise.
const defaultNamespace = "outrigger-system"

// madeBy marks the CRDs and the namespace that this command made, so that
// uninstall leaves those of somebody else alone.
const madeBy = "app.kubernetes.io/managed-by"

// installation is what install and uninstall share.
type installation struct {
	flags     *genericclioptions.ConfigFlags
	namespace string
	timeout   time.Duration
	out       io.Writer
	started   time.Time
}

// step tells the user what was done, with the time since the start.
func (i *installation) step(format string, args ...any) {
	fmt.Fprintf(i.out, "%5.1fs  %s\n", time.Since(i.started).Seconds(), fmt.Sprintf(format, args...))
}

func newInstallCommand() *cobra.Command {
	in := installation{flags: genericclioptions.NewConfigFlags(true)}
	var vals values.Options
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "install",
		Short: "Install the mesh into a cluster, or bring an installation up to date",
		Long: `Install renders the chart inside this binary and applies it. It checks first that
every node can run native sidecars, waits until the control plane answers, and
says what to do next. Run again, it upgrades; values given before are kept.`,
		Example: `  outrigger install
  outrigger install --set trafficPolicy=enforced --set egress=deny
  outrigger install --dry-run > outrigger.yaml`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			merged, err := mergeValues(vals)
			if err != nil {
				return err
			}
			in.out, in.started = cmd.OutOrStdout(), time.Now()
			if dryRun {
				text, err := render(in.namespace, merged)
				if err != nil {
					return err
				}
				_, err = io.WriteString(in.out, text)
				return err
			}
			return in.install(cmd.Context(), merged)
		},
	}
	in.addFlags(cmd)
	cmd.Flags().StringArrayVar(&vals.Values, "set", nil, "set a value of the chart: key=value, may be repeated")
	cmd.Flags().StringSliceVarP(&vals.ValueFiles, "values", "f", nil, "read values of the chart from a file")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "print the YAML and change nothing; asks no cluster")
	return cmd
}

func (i *installation) addFlags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&i.namespace, "system-namespace", defaultNamespace, "where the control plane lives")
	cmd.Flags().DurationVar(&i.timeout, "timeout", 5*time.Minute, "how long to wait")
	cmd.Flags().StringVar(i.flags.KubeConfig, "kubeconfig", "", "the kubeconfig file (default $KUBECONFIG or ~/.kube/config)")
	cmd.Flags().StringVar(i.flags.Context, "context", "", "the kubeconfig's context")
}

// connect returns clients for the cluster of the flags.
func (i *installation) connect() (client.Client, kubernetes.Interface, error) {
	cfg, err := i.flags.ToRESTConfig()
	if err != nil {
		return nil, nil, fmt.Errorf("find the cluster: %w", err)
	}
	c, err := client.New(cfg, client.Options{Scheme: newScheme()})
	if err != nil {
		return nil, nil, fmt.Errorf("connect to the cluster: %w", err)
	}
	set, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return nil, nil, fmt.Errorf("connect to the cluster: %w", err)
	}
	return c, set, nil
}

func (i *installation) install(ctx context.Context, vals map[string]any) error {
	c, set, err := i.connect()
	if err != nil {
		return err
	}
	if err := i.checkVersions(ctx, set); err != nil {
		return err
	}
	if err := i.applyCRDs(ctx, c); err != nil {
		return err
	}
	if err := i.makeNamespace(ctx, c); err != nil {
		return err
	}
	if err := i.release(ctx, vals); err != nil {
		return err
	}
	if err := i.injectCRDs(ctx, c); err != nil {
		return err
	}
	fmt.Fprintf(i.out, `
Outrigger runs in namespace %s. Put a namespace into the mesh and restart its pods:

  kubectl label namespace NAME outrigger.dev/inject=enabled
  kubectl -n NAME rollout restart deployment
`, i.namespace)
	return nil
}

// checkVersions refuses a cluster with a kubelet that does not start native
// sidecars: its pods would never become ready.
func (i *installation) checkVersions(ctx context.Context, set kubernetes.Interface) error {
	least := utilversion.MustParseGeneric(oldest)
	server, err := set.Discovery().ServerVersion()
	if err != nil {
		return fmt.Errorf("ask the API server for its version: %w", err)
	}
	var faults []error
	if v, err := utilversion.ParseGeneric(server.GitVersion); err != nil || v.LessThan(least) {
		faults = append(faults, fmt.Errorf("the API server is Kubernetes %s; %s or later is needed", server.GitVersion, oldest))
	}
	nodes, err := set.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list the nodes: %w", err)
	}
	for _, node := range nodes.Items {
		kubelet := node.Status.NodeInfo.KubeletVersion
		if v, err := utilversion.ParseGeneric(kubelet); err != nil || v.LessThan(least) {
			faults = append(faults, fmt.Errorf("node %s has kubelet %s; native sidecars need %s or later", node.Name, kubelet, oldest))
		}
	}
	if len(faults) > 0 {
		return errors.Join(faults...)
	}
	i.step("Kubernetes %s, %d node(s): good", server.GitVersion, len(nodes.Items))
	return nil
}

// makeNamespace makes the system namespace where there is none.
func (i *installation) makeNamespace(ctx context.Context, c client.Client) error {
	namespace := &corev1.Namespace{}
	namespace.Name, namespace.Labels = i.namespace, map[string]string{madeBy: releaseName}
	if err := c.Create(ctx, namespace); err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("create namespace %s: %w", i.namespace, err)
	}
	return nil
}

func (i *installation) release(ctx context.Context, vals map[string]any) error {
	cfg, err := newHelm(i.flags, i.namespace)
	if err != nil {
		return err
	}
	chrt, err := loadChart()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, i.timeout)
	defer cancel()
	i.step("control plane: applying, and waiting until it is ready")
	_, err = cfg.Releases.Last(releaseName)
	if errors.Is(err, driver.ErrReleaseNotFound) {
		install := action.NewInstall(cfg)
		install.ReleaseName, install.Namespace = releaseName, i.namespace
		install.WaitStrategy, install.Timeout, install.SkipCRDs = kube.StatusWatcherStrategy, i.timeout, true
		_, err = install.RunWithContext(ctx, chrt, vals)
	} else if err == nil {
		upgrade := action.NewUpgrade(cfg)
		upgrade.Namespace, upgrade.ResetThenReuseValues = i.namespace, true
		upgrade.WaitStrategy, upgrade.Timeout, upgrade.SkipCRDs = kube.StatusWatcherStrategy, i.timeout, true
		_, err = upgrade.RunWithContext(ctx, releaseName, chrt, vals)
	}
	if err != nil {
		return fmt.Errorf("install into namespace %s: %w; see kubectl -n %s get pods,events", i.namespace, err, i.namespace)
	}
	i.step("control plane: ready")
	return nil
}
