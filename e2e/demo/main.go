// Command demo shows what the mesh does, on a real cluster: each line is checked
// and timed. It leaves the cluster running and says how to look around.
//
// It is `make demo`. With KUBECONFIG and IMAGE_PREFIX it runs on a cluster of
// your own; see the README.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/outrigger-mesh/outrigger/e2e/harness"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	fmt.Println("The first run builds Kubernetes and takes about 16 minutes on two cores; later ones take two.")
	cluster, err := harness.Open(ctx, ".", os.Stdout, "outriggerd", "outrigger-init", "outrigger-proxy", "bookstore", "client")
	if err != nil {
		return err
	}
	d := &demo{Cluster: cluster}
	for _, act := range []struct {
		what string
		show func(context.Context) (string, error)
	}{
		{"start from nothing", d.clean},
		{"install the mesh: enforced, nothing is allowed that no policy names", d.install},
		{"deploy OSM's bookstore as it is, with OSM's labels: its pods are injected", d.deploy},
		{"buyer -> store: allowed, and over mutual TLS by Envoy's own count", d.mutualTLS},
		{"the wire between their pods: nothing readable", d.wire},
		{"thief -> store: denied", d.denied},
		{"a split of 50/50 between v1 and v2", d.splitEven},
		{"the split changed to 10/90", d.splitShifted},
		{"the policy deleted: denied at once, on an open connection too", d.revoke},
		{"the control plane stopped: traffic goes on", d.withoutControlPlane},
		{"a Job with a sidecar completes", d.job},
	} {
		started := time.Now()
		shown, err := act.show(ctx)
		if err != nil {
			cluster.Step(started, "FAILED %s", act.what)
			return fmt.Errorf("%s: %w", act.what, err)
		}
		cluster.Step(started, "%s: %s", act.what, shown)
	}
	path, err := d.path(ctx)
	if err != nil {
		return err
	}
	fmt.Printf(`
The cluster is still there. Look around:

  export KUBECONFIG=%s
%s  kubectl get pods -A
  kubectl -n bookbuyer exec deploy/bookbuyer -c outrigger-proxy -- /outrigger-agent admin GET /clusters
  bin/outrigger proxy get stats -n bookbuyer deploy/bookbuyer
  kubectl -n bookbuyer logs deploy/bookbuyer -c bookbuyer

%s`, cluster.Kubeconfig, path, d.farewell())
	return nil
}
