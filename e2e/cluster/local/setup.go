package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// pluginFolder is where Debian puts the CNI plugins.
const pluginFolder = "/usr/lib/cni"

// hostPrograms maps each program that the cluster or the tests run, and that is
// not built here, to the Debian package that has it.
func hostPrograms() map[string]string {
	return map[string]string{
		pluginFolder + "/bridge": "containernetworking-plugins",
		"conntrack":              "conntrack",
		"curl":                   "curl",
		"gcc":                    "build-essential", // the race detector needs it, and C's headers
		"ethtool":                "ethtool",
		"ip":                     "iproute2",
		"iptables-restore":       "iptables",
		"jq":                     "jq",
		"mount":                  "mount",
		"nft":                    "nftables",
		"runc":                   "runc",
		"socat":                  "socat",
		"tcpdump":                "tcpdump",
	}
}

// Setup installs the Debian packages that the cluster needs and this machine
// does not have, and builds the programs that the cache does not hold. Up does
// the same first, but for what only tests run; Setup is for whoever wants to have
// the wait behind them.
func Setup(ctx context.Context, config Config) error {
	c, err := config.complete()
	if err != nil {
		return err
	}
	if _, err := c.setup(ctx); err != nil {
		return err
	}
	_, err = c.build(ctx, programNames(testModules())...)
	return err
}

func (c Config) setup(ctx context.Context) (programs, error) {
	if err := c.installPackages(ctx); err != nil {
		return nil, err
	}
	return c.build(ctx, programNames(modules())...)
}

// installPackages asks apt-get only if something is missing.
func (c Config) installPackages(ctx context.Context) error {
	missing := missingPackages(func(program string) bool {
		_, err := lookPath(program)
		return err == nil
	})
	if len(missing) == 0 {
		return nil
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("packages are missing; install them as root: apt-get install %s", strings.Join(missing, " "))
	}
	if _, err := exec.LookPath("apt-get"); err != nil {
		return fmt.Errorf("packages are missing and there is no apt-get; install what Debian calls %s", strings.Join(missing, ", "))
	}
	if err := c.step("apt-get update", func() error { return aptGet(ctx, "update") }); err != nil {
		return err
	}
	fmt.Fprintln(c.Out, "installing", strings.Join(missing, " "))
	return c.step("apt-get install", func() error {
		return aptGet(ctx, append([]string{"install", "--yes", "--no-install-recommends"}, missing...)...)
	})
}

// missingPackages returns the packages, each once and in order, of the programs
// that are not present.
func missingPackages(present func(program string) bool) []string {
	var missing []string
	for program, pkg := range hostPrograms() {
		if !present(program) {
			missing = append(missing, pkg)
		}
	}
	slices.Sort(missing)
	return slices.Compact(missing)
}

// lookPath finds a program, also where only root's path leads.
func lookPath(program string) (string, error) {
	for _, folder := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/local/sbin", "/usr/sbin", "/sbin") {
		path := program
		if !filepath.IsAbs(program) {
			path = filepath.Join(folder, program)
		}
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", errors.New(program + " is not installed")
}

func aptGet(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "apt-get", args...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("apt-get %s: %w\n%s", args[0], err, out)
	}
	return nil
}
