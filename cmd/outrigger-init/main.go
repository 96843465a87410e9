// Outrigger-init redirects the TCP traffic of the pod that it runs in to the
// sidecar, proves that the redirection works, and exits. It is the injected init
// container; it needs the capability NET_ADMIN, and NET_RAW where the kernel has
// only the legacy tables.
//
//	outrigger-init apply [--dry-run] SETTINGS
//
// SETTINGS is what iptables.Settings.String writes; '{}' is a plain pod.
//
// What the rules are and why is in internal/iptables. Here is what touches the
// kernel: tables.go writes and reads back, probe.go tries a connection,
// explain.go says in words what went wrong.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/outrigger-mesh/outrigger/internal/iptables"
)

// Exit codes.
const (
	exitFailure = 1 // the rules are not in force
	exitUsage   = 2 // the command line or the settings are wrong
)

// timeout is for everything together. An init container that hangs shows nothing
// but "Init:0/2"; one that fails shows a reason.
const timeout = time.Minute

const usage = `usage: outrigger-init apply [--dry-run] SETTINGS

Redirects this pod's TCP traffic to its sidecar. SETTINGS is one JSON object;
'{}' redirects everything.

  --dry-run  print the rules of both families and change nothing
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	ctx, cancel := context.WithTimeout(ctx, timeout)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	cancel()
	stop()
	os.Exit(code)
}

// run is the program without its process, and returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	log := slog.New(slog.NewTextHandler(stderr, nil))
	flags := flag.NewFlagSet("outrigger-init", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() { fmt.Fprint(stderr, usage) }
	dryRun := flags.Bool("dry-run", false, "")
	if len(args) > 0 && args[0] == "apply" { // the only command, and the default
		args = args[1:]
	}
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return exitUsage
	}
	if flags.NArg() != 1 {
		fmt.Fprintf(stderr, "outrigger-init: %d arguments, want one: the settings\n%s", flags.NArg(), usage)
		return exitUsage
	}
	settings, err := iptables.Parse(flags.Arg(0))
	if err != nil {
		log.Error("settings refused", "error", err)
		return exitUsage
	}
	if *dryRun {
		printRules(stdout, settings)
		return 0
	}
	if err := redirect(ctx, log, settings); err != nil {
		log.Error("traffic of this pod is not redirected", "error", err)
		return exitFailure
	}
	return 0
}

func printRules(w io.Writer, settings iptables.Settings) {
	fmt.Fprintf(w, "# for iptables-restore --noflush\n%s\n", iptables.Rules(settings, iptables.IPv4))
	fmt.Fprintf(w, "# for ip6tables-restore --noflush, where the pod has an IPv6 address\n%s", iptables.Rules(settings, iptables.IPv6))
}

// redirect brings the rules of every family that the pod uses into force, and
// returns nil only when they were read back and tried.
func redirect(ctx context.Context, log *slog.Logger, settings iptables.Settings) error {
	if err := checkCapability(); err != nil {
		return err
	}
	families := []iptables.Family{iptables.IPv4}
	addrs, err := addresses()
	if err != nil {
		return err
	}
	settings.OwnAddresses = ownAddresses(addrs)
	if reachableByIPv6(addrs) {
		families = append(families, iptables.IPv6)
		for _, addr := range []netip.Addr{iptables.IPv6.Source(), iptables.IPv6.Own()} {
			if err := addToLoopback(addr); err != nil {
				return err
			}
		}
	} else {
		log.Info("IPv6 left alone: this pod has only link-local addresses of it")
	}
	for _, family := range families {
		result, err := program(ctx, family, iptables.Rules(settings, family))
		if err != nil {
			return err
		}
		log.Info("rules in force", "family", family, "tables", result.flavour, "changed", result.changed)
		p := prober{settings: settings, family: family, own: addrs, uid: uint32(os.Geteuid())}
		target, err := p.probe(ctx)
		var skip *skipped
		switch {
		case errors.As(err, &skip):
			log.Info("no probe connection; the rules were read back only", "family", family, "reason", skip.reason)
		case err != nil:
			return err
		default:
			log.Info("probe connection was redirected", "family", family, "to", target)
		}
	}
	return nil
}
