package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"helm.sh/helm/v4/pkg/action"
	"helm.sh/helm/v4/pkg/kube"
	"helm.sh/helm/v4/pkg/storage/driver"
	certificatesv1 "k8s.io/api/certificates/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/outrigger-mesh/outrigger/internal/api"
	"github.com/outrigger-mesh/outrigger/internal/controller"
	"github.com/outrigger-mesh/outrigger/internal/mesh"
	"github.com/outrigger-mesh/outrigger/internal/rotation"
)

func newUninstallCommand() *cobra.Command {
	in := installation{flags: genericclioptions.NewConfigFlags(true)}
	var kinds bool
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Take the mesh out of a cluster",
		Long: `Uninstall removes the control plane, its webhooks, its CA and the trust roots in
the mesh's namespaces. Pods keep their proxies until they are restarted. Kinds that
install brought are removed when no object of them is left, or with --kinds in any
case, objects included. The system namespace goes too, unless it was there before
install: then only what the mesh made in it is removed.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			in.out, in.started = cmd.OutOrStdout(), time.Now()
			return in.uninstall(cmd.Context(), kinds)
		},
	}
	in.addFlags(cmd)
	cmd.Flags().BoolVar(&kinds, "kinds", false, "remove the SMI kinds that install brought, with all objects of them")
	return cmd
}

func (i *installation) uninstall(ctx context.Context, kinds bool) error {
	c, _, err := i.connect()
	if err != nil {
		return err
	}
	cfg, err := newHelm(i.flags, i.namespace)
	if err != nil {
		return err
	}
	remove := action.NewUninstall(cfg)
	// Helm's own wait may give up at once on a Deployment that is being deleted.
	remove.WaitStrategy, remove.Timeout, remove.DeletionPropagation = kube.HookOnlyStrategy, i.timeout, "background"
	_, err = remove.Run(releaseName)
	installed := err == nil
	switch {
	case errors.Is(err, driver.ErrReleaseNotFound):
		i.step("control plane: it was not installed in namespace %s", i.namespace)
	case err != nil:
		return fmt.Errorf("uninstall from namespace %s: %w", i.namespace, err)
	default:
		if err := i.waitGone(ctx, c); err != nil {
			return err
		}
		i.step("control plane: removed")
	}
	if made, err := i.madeNamespace(ctx, c); err != nil {
		return err
	} else if !installed && !made {
		// Nothing here is known to be ours; what is left may belong to a mesh that
		// runs in another namespace.
		i.step("nothing removed; a mesh that was applied as YAML goes with kubectl delete -f")
		return nil
	}
	if err := i.removeTrust(ctx, c); err != nil {
		return err
	}
	if err := i.removeCRDs(ctx, c, kinds); err != nil {
		return err
	}
	if err := i.removeNamespace(ctx, c); err != nil {
		return err
	}
	fmt.Fprint(i.out, `
Pods keep their proxies until they are restarted:

  kubectl -n NAME rollout restart deployment
`)
	return nil
}

// madeNamespace reports whether the system namespace is there and install made it.
func (i *installation) madeNamespace(ctx context.Context, c client.Client) (bool, error) {
	namespace := &corev1.Namespace{}
	if err := c.Get(ctx, client.ObjectKey{Name: i.namespace}, namespace); client.IgnoreNotFound(err) != nil {
		return false, fmt.Errorf("read namespace %s: %w", i.namespace, err)
	}
	return namespace.Labels[madeBy] == releaseName, nil
}

// removeNamespace deletes the system namespace if install made it, and in
// another's what outriggerd made.
func (i *installation) removeNamespace(ctx context.Context, c client.Client) error {
	made, err := i.madeNamespace(ctx, c)
	if err != nil {
		return err
	}
	if made {
		namespace := &corev1.Namespace{}
		namespace.Name = i.namespace
		if err := client.IgnoreNotFound(c.Delete(ctx, namespace)); err != nil {
			return fmt.Errorf("delete namespace %s: %w", i.namespace, err)
		}
		i.step("namespace %s: removed", i.namespace)
		return nil
	}
	i.step("namespace %s: kept, because outrigger install did not make it", i.namespace)
	all := []client.Object{
		&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "outrigger-webhook-ca"}},
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "outrigger-roots"}},
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: controller.AuthoritiesConfigMap}},
		&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: "outriggerd"}},
	}
	for _, name := range rotation.OwnSecrets() {
		all = append(all, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}})
	}
	for _, made := range all {
		made.SetNamespace(i.namespace)
		if err := client.IgnoreNotFound(c.Delete(ctx, made)); err != nil {
			return fmt.Errorf("delete %T %s/%s: %w", made, i.namespace, made.GetName(), err)
		}
	}
	return nil
}

// waitGone waits until no pod of the control plane is left: one that still runs
// would put back what is removed next.
func (i *installation) waitGone(ctx context.Context, c client.Client) error {
	var pods corev1.PodList
	err := wait.PollUntilContextTimeout(ctx, 200*time.Millisecond, i.timeout, true, func(ctx context.Context) (bool, error) {
		err := c.List(ctx, &pods, client.InNamespace(i.namespace), client.MatchingLabels{"app.kubernetes.io/component": "outriggerd"})
		return len(pods.Items) == 0, err
	})
	if err != nil {
		return fmt.Errorf("wait until the control plane's pods are gone from namespace %s (%d left): %w", i.namespace, len(pods.Items), err)
	}
	return nil
}

// removeTrust deletes the trust roots that outriggerd kept in the mesh's
// namespaces.
func (i *installation) removeTrust(ctx context.Context, c client.Client) error {
	var namespaces corev1.NamespaceList
	if err := c.List(ctx, &namespaces); err != nil {
		return fmt.Errorf("list namespaces: %w", err)
	}
	removed := 0
	for _, ns := range namespaces.Items {
		trust := &corev1.ConfigMap{}
		trust.Namespace, trust.Name = ns.Name, mesh.TrustConfigMap
		err := c.Delete(ctx, trust)
		if client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("delete ConfigMap %s/%s: %w", ns.Name, trust.Name, err)
		}
		if err == nil {
			removed++
		}
	}
	i.step("trust roots: removed from %d namespace(s)", removed)
	err := c.DeleteAllOf(ctx, &certificatesv1.ClusterTrustBundle{}, client.HasLabels{"outrigger.dev/trust"})
	if meta.IsNoMatchError(err) || apierrors.IsNotFound(err) {
		return nil // the cluster has no such kind
	}
	if err != nil {
		return fmt.Errorf("delete the mesh's ClusterTrustBundle: %w", err)
	}
	return nil
}

// newScheme knows the kinds that install and uninstall touch.
func newScheme() *runtime.Scheme {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientscheme.AddToScheme, apiextensionsv1.AddToScheme, api.AddToScheme} {
		if err := add(scheme); err != nil {
			panic(err) // two constants of this program contradict each other
		}
	}
	return scheme
}
