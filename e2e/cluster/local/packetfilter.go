package local

import (
	"context"
	"fmt"
	"os/exec"
	"slices"
	"strings"
)

// sharedChains are the chains that the portmap plugin makes for the first pod
// with a host port, and leaves behind after the last one.
func sharedChains() []string {
	return []string{"CNI-HOSTPORT-DNAT", "CNI-HOSTPORT-MASQ", "CNI-HOSTPORT-SETMARK"}
}

// removeTables deletes the tables of nft that the cluster made.
func removeTables(ctx context.Context, record state) error {
	present, err := nftTables(ctx)
	if err != nil {
		return err
	}
	for _, table := range record.Tables {
		if !slices.Contains(present, table) {
			continue
		}
		if _, err := output(ctx, "/", "nft", "delete table "+table); err != nil {
			return err
		}
	}
	for family, command := range map[string]string{"ip": "iptables", "ip6": "ip6tables"} {
		// Only a table that is there can hold rules of the portmap plugin, and
		// iptables would make it if it was asked.
		if table := family + " nat"; slices.Contains(present, table) {
			if err := removePortmaps(ctx, command, slices.Contains(record.HostTables, table), table); err != nil {
				return err
			}
		}
	}
	return nil
}

// removePortmaps deletes what the portmap plugin wrote for the cluster's pods
// with host ports. Where the table was not there before the cluster, what the
// plugin shares between all its networks goes too, and the table if it is empty
// then.
func removePortmaps(ctx context.Context, command string, hostHasTable bool, table string) error {
	saved, err := output(ctx, "/", command+"-save", "-t", "nat")
	if err != nil {
		return err
	}
	if script := portmapRemoval(saved, hostHasTable); script != "" {
		cmd := exec.CommandContext(ctx, command+"-restore", "--noflush")
		cmd.Stdin = strings.NewReader(script)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("remove rules of pods with host ports: %w\n%s", err, out)
		}
	}
	if hostHasTable {
		return nil
	}
	if saved, err = output(ctx, "/", command+"-save", "-t", "nat"); err != nil {
		return err
	}
	for line := range strings.Lines(saved) {
		if strings.HasPrefix(line, "-A") || strings.HasPrefix(line, ":") && !strings.Contains(line, " ACCEPT ") {
			return nil // somebody else has found a use for it
		}
	}
	_, err = output(ctx, "/", "nft", "delete table "+table)
	return err
}

// portmapRemoval returns the input for iptables-restore that removes the rules
// of the cluster's network from saved, the output of iptables-save; empty if
// there are none. The plugin names its network in a comment on the rule that
// leads to a pod's own chain.
func portmapRemoval(saved string, keepShared bool) string {
	const ours = `--comment "dnat name: \"` + networkName + `\" id: `
	var chains, rules []string
	for line := range strings.Lines(saved) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "-A "):
			rules = append(rules, line)
			if target := jumpTarget(line); strings.Contains(line, ours) && !slices.Contains(chains, target) {
				chains = append(chains, target)
			}
		case !keepShared && strings.HasPrefix(line, ":"):
			if name, _, _ := strings.Cut(line[1:], " "); slices.Contains(sharedChains(), name) {
				chains = append(chains, name)
			}
		}
	}
	if len(chains) == 0 {
		return ""
	}
	var script strings.Builder
	script.WriteString("*nat\n")
	for _, rule := range rules {
		chain := strings.Fields(rule)[1]
		if slices.Contains(chains, jumpTarget(rule)) && !slices.Contains(chains, chain) {
			fmt.Fprintf(&script, "-D%s\n", strings.TrimPrefix(rule, "-A"))
		}
	}
	// Emptied first: a chain that another one leads to cannot be removed.
	for _, command := range []string{"-F", "-X"} {
		for _, chain := range chains {
			fmt.Fprintf(&script, "%s %s\n", command, chain)
		}
	}
	script.WriteString("COMMIT\n")
	return script.String()
}

// jumpTarget returns where a rule of iptables-save leads, or "".
func jumpTarget(rule string) string {
	_, after, _ := strings.Cut(rule, " -j ")
	target, _, _ := strings.Cut(after, " ")
	return target
}
