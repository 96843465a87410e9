// Command bookstore is the application of the demo and of the end-to-end tests:
// one program whose first argument says what it is.
//
// The shops of OSM's demo are buyer, thief, store and warehouse (shopper.go,
// store.go). What tests run inside pods is load, hold and job, which call
// (load.go, hold.go, job.go; caller.go says over which protocols), what they call:
// http-echo, tcp-echo and grpc-health (echo.go, tcp.go, grpc.go), tcp-client, and
// wait. It knows nothing of the mesh: that is the point of it.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

// version is set when the program is linked.
var version = "dev"

// errNotAsWished ends the program with status 1 after a command has said itself
// what went otherwise.
var errNotAsWished = errors.New("not as wished")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	slog.SetDefault(slog.New(slog.NewJSONHandler(os.Stderr, nil))) // its times are RFC 3339 with fractions
	err := root().ExecuteContext(ctx)
	if err == nil {
		return
	}
	if !errors.Is(err, errNotAsWished) {
		_, _ = fmt.Fprintln(os.Stderr, "bookstore:", err)
	}
	stop()
	os.Exit(1)
}

func root() *cobra.Command {
	cmd := &cobra.Command{
		Use:           "bookstore",
		Short:         "The demo application: shops that call each other, and tools to call them with",
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	cmd.AddCommand(
		shopperCommand("buyer", "bookbuyer", "Buy a book every second, and count the answers"),
		shopperCommand("thief", "bookthief", "Try what the buyer does, without being allowed to"),
		storeCommand(), warehouseCommand(), httpEchoCommand(),
		loadCommand(), holdCommand(), jobCommand(),
		tcpEchoCommand(), tcpClientCommand(), grpcHealthCommand(), waitCommand(),
	)
	return cmd
}

func waitCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "wait",
		Aliases: []string{"sleep"},
		Short:   "Do nothing until told to stop: a pod to run commands in",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			<-cmd.Context().Done()
			return nil
		},
	}
}

// now is the time as all output has it.
func now() string { return time.Now().UTC().Format(time.RFC3339Nano) }
