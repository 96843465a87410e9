// Command cluster brings up a real Kubernetes cluster of one node on this
// machine, and takes it down again:
//
//	go run ./e2e/cluster up
//	go run ./e2e/cluster load IMAGE.tar...
//	KUBECONFIG=$(go run ./e2e/cluster kubeconfig) kubectl get pods
//	go run ./e2e/cluster status
//	go run ./e2e/cluster down
//
// Package local does the work and says how.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/outrigger-mesh/outrigger/e2e/cluster/local"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := command().ExecuteContext(ctx)
	stop()
	if err != nil {
		os.Exit(1)
	}
}

func command() *cobra.Command {
	var config local.Config
	root := &cobra.Command{
		Use:          "cluster",
		Short:        "A real Kubernetes cluster of one node on this machine, without a container engine",
		SilenceUsage: true,
	}
	root.PersistentFlags().StringVar(&config.State, "state", "", "folder of the cluster (default: outrigger/cluster in the user's cache folder)")
	root.PersistentFlags().StringVar(&config.Tools, "tools", "", "folder of the programs built for it (default: outrigger/tools in the user's cache folder)")
	root.AddCommand(
		&cobra.Command{
			Use: "up", Args: cobra.NoArgs,
			Short: "Bring the cluster up and wait until it can be used; do nothing if it is up and well",
			RunE:  func(cmd *cobra.Command, _ []string) error { return local.Up(cmd.Context(), config) },
		},
		&cobra.Command{
			Use: "down", Args: cobra.NoArgs,
			Short: "Stop the cluster, undo what it did to this machine and delete its data",
			RunE:  func(cmd *cobra.Command, _ []string) error { return local.Down(cmd.Context(), config) },
		},
		&cobra.Command{
			Use: "status", Args: cobra.NoArgs,
			Short: "Say how the cluster is; fail if it cannot be used",
			RunE:  func(cmd *cobra.Command, _ []string) error { return status(cmd, config) },
		},
		&cobra.Command{
			Use: "load IMAGE.tar...", Args: cobra.MinimumNArgs(1),
			Short: "Import image archives into the cluster",
			RunE:  func(cmd *cobra.Command, args []string) error { return local.Load(cmd.Context(), config, args...) },
		},
		&cobra.Command{
			Use: "kubeconfig", Args: cobra.NoArgs,
			Short: "Print the path of the administrator's kubeconfig",
			RunE: func(cmd *cobra.Command, _ []string) error {
				path, err := local.Kubeconfig(config)
				if err == nil {
					fmt.Fprintln(cmd.OutOrStdout(), path)
				}
				return err
			},
		},
		&cobra.Command{
			Use: "setup", Args: cobra.NoArgs,
			Short: "Install the Debian packages that the cluster needs, and build its programs",
			RunE:  func(cmd *cobra.Command, _ []string) error { return local.Setup(cmd.Context(), config) },
		},
	)
	return root
}

// status prints the report as a table.
func status(cmd *cobra.Command, config local.Config) error {
	report, err := local.Status(cmd.Context(), config)
	if err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	var total int64
	for _, component := range report.Components {
		is := "running"
		if !component.Running {
			is = "stopped"
		}
		fmt.Fprintf(out, "%-24s %-8s pid %-7d %5d MiB  %s\n", component.Name, is, component.PID, component.Memory>>20, component.Log)
		total += component.Memory
	}
	if !report.Ready {
		return errors.New(report.Problem)
	}
	fmt.Fprintf(out, "ready; %d MiB in all\nkubeconfig  %s\nkubectl     %s\n", total>>20, report.Kubeconfig, report.Kubectl)
	return nil
}
