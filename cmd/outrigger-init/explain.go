package main

import (
	"errors"
	"fmt"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"
)

// checkCapability returns an error that says what to do when the process may not
// change the network. Asked first, since the tools report it in many ways.
func checkCapability() error {
	if has, err := hasCapability(unix.CAP_NET_ADMIN); err != nil || has {
		return err
	}
	return errors.New("capability NET_ADMIN is missing: the container outrigger-init must run as user 0 with securityContext.capabilities.add [NET_ADMIN]; " +
		"a Pod Security level of baseline or restricted on the namespace forbids that")
}

// hasCapability tells whether the process has the capability in effect.
func hasCapability(capability int) (bool, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return false, fmt.Errorf("read own capabilities: %w", err)
	}
	return data[capability/32].Effective&(1<<(capability%32)) != 0, nil
}

// advice tells what to do about what an iptables tool complained of.
type advice struct {
	signs []string // any of them, in lower case, in the tool's complaint
	do    string
}

// advices are searched in order, so the narrow ones come first.
func advices(f flavour) []advice {
	modules := "nf_tables, nft_compat, nft_chain_nat, xt_owner, xt_tcpudp and xt_REDIRECT"
	capabilities := "the capability NET_ADMIN"
	if f == legacy {
		modules = "iptable_nat, ip6table_nat, xt_owner, xt_tcpudp and xt_REDIRECT"
		capabilities = "the capabilities NET_ADMIN and NET_RAW; the legacy tables need both (the chart's proxy.legacyIptables gives NET_RAW)"
	}
	return []advice{
		{[]string{"open lock file"}, "the lock file is in memory and reached by /proc: the container needs its /proc"},
		{[]string{"xtables lock"}, "another program holds the lock of the tables: find out which one changes rules in this pod's network"},
		{[]string{"is incompatible"}, "the nat table holds rules that iptables cannot read, written with nft: take them out, or into a table of their own"},
		{
			[]string{"permission denied", "operation not permitted", "must be root"},
			"the kernel refuses: outrigger-init must run as user 0, without a seccomp or SELinux profile of its own, and with " + capabilities,
		},
		{
			[]string{"no such file", "does not exist", "no chain/target/match", "couldn't load", "not supported", "unsupported", "initialize", "invalid argument"},
			"the node's kernel lacks something: load the modules " + modules + " on the node (modprobe), or update its kernel",
		},
	}
}

// explain makes an error of a tool's failure: what was run, what it said, and
// what to do.
func explain(t tables, action string, err error, complaint string) error {
	tool := t.tool(action)
	if errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("%s is not in this image: use the image outrigger-init of this release, or add the package iptables to your own", tool)
	}
	complaint = strings.Join(strings.Fields(complaint), " ")
	do := ""
	for _, a := range advices(t.flavour) {
		if a.fits(complaint) {
			do = "; " + a.do
			break
		}
	}
	return fmt.Errorf("%s: %w: %s%s", tool, err, complaint, do)
}

func (a advice) fits(complaint string) bool {
	complaint = strings.ToLower(complaint)
	for _, sign := range a.signs {
		if strings.Contains(complaint, sign) {
			return true
		}
	}
	return false
}
