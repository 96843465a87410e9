// Outrigger-agent is the entry point of the sidecar.
//
//	outrigger-agent proxy SETTINGS         run Envoy and all that it needs
//	outrigger-agent drain                  the pod is about to end (preStop hook)
//	outrigger-agent admin GET|POST PATH    ask the running Envoy
//
// SETTINGS is one JSON object, see bootstrap.Settings; the pod's identity comes
// from the environment, see the Env constants there. What the agent does is in
// internal/agent. Exit codes: 2 where the command line is wrong, 1 where it could
// not be done, and for proxy Envoy's own where Envoy ended by itself.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"runtime/debug"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/outrigger-mesh/outrigger/bootstrap"
	"github.com/outrigger-mesh/outrigger/internal/agent"
)

// Exit codes of our own.
const (
	exitFailure = 1
	exitUsage   = 2
)

const usage = `usage: outrigger-agent [flags] proxy SETTINGS
       outrigger-agent [flags] drain
       outrigger-agent [flags] admin GET|POST PATH

Runs the sidecar; tells a running one that its pod is about to end; asks its
Envoy. Flags, which tests need and pods do not:

`

// options are the command line's flags.
type options struct {
	stateDir, tokenFile, trustFile, identityDir, envoy, address, metricsAddress string
}

func main() {
	// Every pod has an agent, and it is idle: memory is worth more than the time to
	// collect it.
	debug.SetGCPercent(25)
	unix.Umask(0o077) // keys, sockets and what Envoy writes are this user's alone
	os.Exit(run(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
}

// run is the program without its process, and returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	var o options
	flags := flag.NewFlagSet("outrigger-agent", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&o.stateDir, "state", bootstrap.StateDir, "`folder` for keys and sockets")
	flags.StringVar(&o.tokenFile, "token", bootstrap.TokenFile, "`file` with the service account token")
	flags.StringVar(&o.trustFile, "trust", bootstrap.TrustFile, "`file` with the roots for outriggerd")
	flags.StringVar(&o.identityDir, "identity", bootstrap.IdentityDir, "`folder` where certificates of somebody else come from")
	flags.StringVar(&o.envoy, "envoy", bootstrap.EnvoyBinary, "Envoy's `path`")
	flags.StringVar(&o.address, "address", ":"+strconv.Itoa(bootstrap.AgentPort), "`address` for readiness and probes")
	flags.StringVar(&o.metricsAddress, "metrics-address", ":"+strconv.Itoa(bootstrap.MetricsPort), "`address` for metrics")
	flags.Usage = func() {
		fmt.Fprint(stderr, usage)
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return exitUsage
	}
	switch command, n := flags.Arg(0), flags.NArg(); {
	case command == "proxy" && n == 2:
		return proxy(ctx, flags.Arg(1), o, stderr)
	case command == "drain" && n == 1:
		return report(stderr, agent.StartDrain(ctx, bootstrap.FilesIn(o.stateDir).AgentSocket))
	case command == "admin" && n == 3:
		return report(stderr, agent.Relay(ctx, bootstrap.FilesIn(o.stateDir).AdminSocket, flags.Arg(1), flags.Arg(2), stdout))
	}
	flags.Usage()
	return exitUsage
}

func report(stderr io.Writer, err error) int {
	if err != nil {
		fmt.Fprintln(stderr, "outrigger-agent:", err)
		return exitFailure
	}
	return 0
}

// proxy runs the sidecar. It logs as Envoy does, one JSON object on each line.
func proxy(ctx context.Context, text string, o options, stderr io.Writer) int {
	log := slog.New(slog.NewJSONHandler(stderr, &slog.HandlerOptions{ReplaceAttr: lowerLevel})).With("logger", "agent")
	settings, err := bootstrap.Parse(text)
	if err != nil {
		log.Error("settings refused", "error", err)
		return exitUsage
	}
	ip, err := podIP(os.Getenv(bootstrap.EnvPodIPs))
	if err != nil {
		log.Error("environment refused", "error", err)
		return exitUsage
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGUSR1, unix.SIGUSR2)
	defer signal.Stop(signals)
	status, err := agent.Run(ctx, agent.Config{
		Settings: settings,
		Node: bootstrap.Node{
			Namespace:      os.Getenv(bootstrap.EnvPodNamespace),
			Pod:            os.Getenv(bootstrap.EnvPodName),
			UID:            os.Getenv(bootstrap.EnvPodUID),
			ServiceAccount: os.Getenv(bootstrap.EnvServiceAccount),
			Zone:           os.Getenv(bootstrap.EnvZone),
			StateDir:       o.stateDir,
		},
		PodIP:     ip,
		TokenFile: o.tokenFile,
		TrustFile: o.trustFile, IdentityDir: o.identityDir,
		Envoy:   o.envoy,
		Address: o.address, MetricsAddress: o.metricsAddress,
		Signals: signals,
		Log:     log,
	})
	if err != nil {
		log.Error("sidecar failed", "error", err)
		return cmp.Or(status, exitFailure)
	}
	log.Info("sidecar ended", "status", status)
	return status
}

// lowerLevel writes levels as Envoy does.
func lowerLevel(_ []string, a slog.Attr) slog.Attr {
	if level, ok := a.Value.Any().(slog.Level); ok {
		a.Value = slog.StringValue(strings.ToLower(level.String()))
	}
	return a
}

// podIP is the first of the addresses, the pod's primary one, which the kubelet
// would probe.
func podIP(list string) (netip.Addr, error) {
	first, _, _ := strings.Cut(list, ",")
	ip, err := netip.ParseAddr(strings.TrimSpace(first))
	if err != nil {
		return netip.Addr{}, fmt.Errorf("environment variable %s: %q; allowed are IP addresses separated by commas: %w", bootstrap.EnvPodIPs, list, err)
	}
	return ip.Unmap(), nil
}
