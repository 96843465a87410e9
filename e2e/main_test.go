//go:build e2e

package e2e

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/outrigger-mesh/outrigger/e2e/harness"
)

const (
	// prefix begins the names of all namespaces of tests.
	prefix = "e2e-"
	// patience is how long something may take that should take a moment. Two
	// cores are shared by the cluster, its pods and the tests.
	patience = time.Minute
	// atOnce is how many tests run at the same time. Some bring up a dozen pods: with
	// more at once two cores are so busy that the kubelet's probes time out, and pods
	// which are well stop being ready.
	atOnce = "3"
)

// cluster is the cluster with the mesh, and before what was in it without.
var (
	cluster *harness.Cluster
	before  map[string]bool
)

func TestMain(m *testing.M) {
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := flag.Set("test.parallel", atOnce)
	if err == nil {
		err = setUp(ctx)
	}
	status := 1
	if err == nil {
		status = m.Run()
		err = cleanUp(ctx)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		status = 1
	}
	stop()
	os.Exit(status)
}

// setUp opens the cluster, removes what an earlier run left, and installs the mesh.
func setUp(ctx context.Context) error {
	var err error
	if cluster, err = harness.Open(ctx, "..", os.Stdout); err != nil {
		return err
	}
	started := time.Now()
	if err := cleanUp(ctx); err != nil {
		return err
	}
	if _, err := cluster.CLI(ctx, "uninstall"); err != nil {
		return err
	}
	if err := cluster.DeleteNamespaces(ctx, harness.SystemNamespace); err != nil {
		return err
	}
	if before, err = cluster.Inventory(ctx); err != nil {
		return err
	}
	cluster.Step(started, "nothing of an earlier run is left")
	return install(ctx)
}

func install(ctx context.Context) error {
	started := time.Now()
	if _, err := cluster.Install(ctx, "trafficPolicy=enforced"); err != nil {
		return fmt.Errorf("%w\n%s", err, cluster.Report(ctx))
	}
	cluster.Step(started, "mesh installed, enforced")
	return nil
}

// cleanUp removes the namespaces of tests.
func cleanUp(ctx context.Context) error {
	var namespaces corev1.NamespaceList
	if err := cluster.Client.List(ctx, &namespaces); err != nil {
		return fmt.Errorf("list namespaces: %w", err)
	}
	var ours []string
	for _, ns := range namespaces.Items {
		if strings.HasPrefix(ns.Name, prefix) {
			ours = append(ours, ns.Name)
		}
	}
	return cluster.DeleteNamespaces(ctx, ours...)
}
