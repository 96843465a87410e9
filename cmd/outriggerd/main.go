// Outriggerd is the control plane: webhooks that inject sidecars, certificates
// for them, and their configuration over xDS. Any number of replicas serve; the
// elected one writes.
//
// This is the only place where the parts are wired together.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/go-logr/logr"
	_ "golang.org/x/crypto/x509roots/fallback" // the image has no public authorities of its own
	ctrl "sigs.k8s.io/controller-runtime"
)

// version is set when the program is linked.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // whoever says it twice will not wait
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "outriggerd:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	cfg, err := parseConfig(args, os.Getenv, os.Stderr)
	if err != nil {
		return err
	}
	handler := slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: cfg.logLevel})
	log := logr.FromSlogHandler(handler)
	ctrl.SetLogger(log)
	log.Info("outriggerd starts", "version", version, "mesh", cfg.mesh, "trustDomain", cfg.trustDomain,
		"trafficPolicy", cfg.trafficPolicy, "egress", cfg.egress)
	return serve(ctx, cfg, log)
}
