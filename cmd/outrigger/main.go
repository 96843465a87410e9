// Outrigger is the command line of the mesh: it puts sidecars into YAML, installs
// the control plane, and tells what the mesh decided and why.
//
// Each command is in a file of its own, with a constructor that main.go lists.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// version is set when the program is linked.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := newRootCommand().ExecuteContext(ctx)
	stop()
	os.Exit(report(err, os.Stderr))
}

// A statusError ends the program with a status of its own. Without a cause there
// is nothing left to say.
type statusError struct {
	status int
	err    error
}

func (e *statusError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit status %d", e.status)
	}
	return e.err.Error()
}

func (e *statusError) Unwrap() error { return e.err }

// report prints an error and returns the status to end with.
func report(err error, w io.Writer) int {
	if err == nil {
		return 0
	}
	status := 1
	if own := (*statusError)(nil); errors.As(err, &own) {
		if status = own.status; own.err == nil {
			return status
		}
	}
	fmt.Fprintln(w, "outrigger:", err)
	return status
}

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "outrigger",
		Short:         "An injector-first Envoy service mesh for Kubernetes",
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true, // main prints it, once
	}
	root.AddCommand(newInstallCommand(), newUninstallCommand(), newProxyCommand(), newInjectCommand(), newUninjectCommand(), newWhyCommand(), newCheckCommand(), newCertificateCommand())
	return root
}
