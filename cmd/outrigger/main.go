// Outrigger is the command line of the mesh: it puts sidecars into YAML, installs
// the control plane, and tells what the mesh decided and why.
//
// Each command is in a file of its own, with a constructor that main.go lists.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := newRootCommand().ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "outrigger:", err)
		os.Exit(1)
	}
}

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "outrigger",
		Short:         "An injector-first Envoy service mesh for Kubernetes",
		SilenceUsage:  true,
		SilenceErrors: true, // main prints it, once
	}
	root.AddCommand(newInstallCommand(), newUninstallCommand(), newProxyCommand(), newInjectCommand(), newUninjectCommand())
	return root
}
