package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/outrigger-mesh/outrigger/internal/iptables"
)

// A flavour is one of the two kernel interfaces behind the iptables commands.
// Rules of one are invisible to the commands of the other, and both are obeyed.
type flavour string

const (
	nft    flavour = "nft"
	legacy flavour = "legacy"
)

// tables are the nat tables of one family in one flavour.
type tables struct {
	family  iptables.Family
	flavour flavour
}

// tool is the command for an action, such as ip6tables-nft-save.
func (t tables) tool(action string) string {
	prefix := "iptables"
	if t.family == iptables.IPv6 {
		prefix = "ip6tables"
	}
	return fmt.Sprintf("%s-%s-%s", prefix, t.flavour, action)
}

// programmed says how rules came into force.
type programmed struct {
	flavour flavour
	changed bool // false: they had been there already
}

// program brings rules into force in the flavour that works here: nft, which
// newer kernels have and which needs no more than NET_ADMIN, else legacy. What
// the kernel can do is found out by doing it, since a failed transaction leaves
// nothing behind and nothing else is a proof.
func program(ctx context.Context, family iptables.Family, rules string) (programmed, error) {
	candidates := []flavour{nft, legacy}
	if legacyInUse(ctx, family) {
		slices.Reverse(candidates)
	}
	var errs []error
	for _, f := range candidates {
		changed, err := tables{family, f}.ensure(ctx, rules)
		if err == nil {
			return programmed{f, changed}, nil
		}
		errs = append(errs, fmt.Errorf("%s tables: %w", f, err))
	}
	return programmed{}, fmt.Errorf("write the %s rules: %w", family, errors.Join(errs...))
}

// legacyInUse tells whether this network namespace has legacy rules and no nft
// ones: somebody before us, our own earlier run maybe, chose legacy. Listing
// legacy tables creates them, so the kernel is asked first whether they exist.
func legacyInUse(ctx context.Context, family iptables.Family) bool {
	names := "/proc/self/net/ip_tables_names"
	if family == iptables.IPv6 {
		names = "/proc/self/net/ip6_tables_names"
	}
	// An error means no legacy tables, or a tool that is not there: whatever it
	// is, the attempt to write will tell.
	existing, err := os.ReadFile(names)
	if err != nil || !slices.Contains(strings.Fields(string(existing)), "nat") {
		return false
	}
	inLegacy, err := tables{family, legacy}.save(ctx)
	if err != nil || !iptables.InUse(inLegacy) {
		return false
	}
	inNFT, err := tables{family, nft}.save(ctx)
	return err != nil || !iptables.InUse(inNFT)
}

// ensure makes the tables hold the rules and proves it by reading them back.
func (t tables) ensure(ctx context.Context, rules string) (changed bool, err error) {
	saved, err := t.save(ctx)
	if err != nil {
		return false, err
	}
	changes := iptables.Changes(rules, saved)
	if changes == "" {
		return false, nil
	}
	// Several init containers never run at once, but a node agent may be here too.
	if _, err := t.exec(ctx, "restore", changes, "--noflush", "-w", "10"); err != nil {
		return false, err
	}
	if saved, err = t.save(ctx); err != nil {
		return false, err
	}
	if diffs := iptables.Differences(rules, saved); len(diffs) > 0 {
		return false, fmt.Errorf("%s prints other rules than were written: %s", t.tool("save"), strings.Join(diffs, "; "))
	}
	return true, nil
}

func (t tables) save(ctx context.Context) (string, error) {
	return t.exec(ctx, "save", "", "-t", "nat")
}

// exec runs a tool and returns what it prints.
func (t tables) exec(ctx context.Context, action, input string, args ...string) (string, error) {
	// The legacy tools insist on a lock file, by default in /run, which a
	// read-only root does not let them make. The lock would keep off nobody: no
	// other container sees our /run. A file in memory does, as descriptor 3.
	lock, err := unix.MemfdCreate("xtables.lock", unix.MFD_CLOEXEC)
	if err != nil {
		return "", fmt.Errorf("make a lock file in memory: %w", err)
	}
	lockFile := os.NewFile(uintptr(lock), "xtables.lock")
	defer lockFile.Close()

	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, t.tool(action), args...)
	cmd.ExtraFiles = []*os.File{lockFile}
	cmd.Env = append(os.Environ(), "XTABLES_LOCKFILE=/proc/self/fd/3")
	cmd.Stdin = strings.NewReader(input)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", explain(t, action, err, stderr.String())
	}
	return stdout.String(), nil
}
