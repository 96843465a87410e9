package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// masqueradeTable is the cluster's own table: it gives the host's address to
// what pods send out of the cluster. Kept apart from the CNI plugin's own
// masquerading because one table of ours is gone with one command.
const masqueradeTable = "inet outrigger"

// proxyTables are the tables of kube-proxy in nftables mode.
func proxyTables() []string { return []string{"ip kube-proxy", "ip6 kube-proxy"} }

// hasIPv6 reports whether the kernel speaks IPv6.
func hasIPv6() bool {
	disabled, err := os.ReadFile("/proc/sys/net/ipv6/conf/all/disable_ipv6")
	return err == nil && strings.TrimSpace(string(disabled)) == "0"
}

// checkNetwork returns an error if something that is not this cluster's stands
// where its network goes.
func checkNetwork(ctx context.Context, s settings) error {
	if _, err := net.InterfaceByName(bridgeName); err == nil {
		return fmt.Errorf("interface %s exists and is not of this state folder: another cluster of this kind runs, or its state was deleted; remove the interface if it is not in use", bridgeName)
	}
	tables, err := nftTables(ctx)
	if err != nil {
		return err
	}
	for _, table := range proxyTables() {
		if slices.Contains(tables, table) {
			return fmt.Errorf("nft table %q exists: another kube-proxy runs on this machine", table)
		}
	}
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		return err
	}
	for _, address := range addresses {
		ip, host, err := net.ParseCIDR(address.String())
		if err != nil {
			continue
		}
		for _, ours := range slices.Concat(s.Pods, s.Services) {
			first, wanted, err := net.ParseCIDR(ours)
			if err != nil {
				return err
			}
			if wanted.Contains(ip) || host.Contains(first) {
				return fmt.Errorf("this machine's address %s overlaps with %s, which the cluster uses", address, ours)
			}
		}
	}
	return nil
}

// setUpNetwork makes the bridge and the rules, after recording them in s.
func (c Config) setUpNetwork(ctx context.Context, s settings, record *state) error {
	tables, err := nftTables(ctx)
	if err != nil {
		return err
	}
	record.Bridge, record.HostTables = bridgeName, tables
	record.Tables = append(proxyTables(), masqueradeTable)
	if err := c.saveState(*record); err != nil {
		return err
	}
	commands := [][]string{
		{"ip", "link", "add", bridgeName, "type", "bridge"},
		{"ip", "address", "add", bridgeIPv4 + "/24", "dev", bridgeName},
	}
	if len(s.Pods) > 1 {
		// Nobody else is on the bridge, so there is no duplicate to wait for.
		commands = append(commands, []string{"ip", "address", "add", bridgeIPv6 + "/64", "dev", bridgeName, "nodad"})
	}
	commands = append(commands, []string{"ip", "link", "set", bridgeName, "up"})
	for _, command := range append(commands, []string{"nft", masqueradeRules(s.Pods)}) {
		if _, err := output(ctx, "/", command[0], command[1:]...); err != nil {
			return err
		}
	}
	return c.setSysctls(ctx, record, len(s.Pods) > 1)
}

// masqueradeRules returns nft's commands for masqueradeTable.
func masqueradeRules(pods []string) string {
	var rules strings.Builder
	fmt.Fprintf(&rules, "add table %[1]s; add chain %[1]s postrouting { type nat hook postrouting priority srcnat; }", masqueradeTable)
	for _, cidr := range pods {
		family := "ip"
		if strings.Contains(cidr, ":") {
			family = "ip6"
		}
		fmt.Fprintf(&rules, "; add rule %s postrouting %s saddr %s oifname != %s masquerade", masqueradeTable, family, cidr, bridgeName)
	}
	return rules.String()
}

// setSysctls lets the kernel forward for the pods and show traffic between two
// of them to the packet filter, without which answers through a Service would
// take a short cut. The kubelet's own settings are recorded too, since it does
// not put them back.
func (c Config) setSysctls(ctx context.Context, record *state, ipv6 bool) error {
	if _, err := os.Stat("/proc/sys/net/bridge"); errors.Is(err, fs.ErrNotExist) {
		if _, err := output(ctx, "/", "modprobe", "br_netfilter"); err != nil {
			return fmt.Errorf("traffic between pods cannot be filtered: %w", err)
		}
	}
	wanted := map[string]string{
		"net/ipv4/ip_forward":                 "1",
		"net/bridge/bridge-nf-call-iptables":  "1",
		"net/bridge/bridge-nf-call-ip6tables": "1",
	}
	if ipv6 {
		maps.Copy(wanted, map[string]string{"net/ipv6/conf/all/forwarding": "1"})
		// A kernel that forwards stops listening to its router unless it is told
		// to go on, and this machine may have its own route from there.
		listening, err := filepath.Glob("/proc/sys/net/ipv6/conf/*/accept_ra")
		if err != nil {
			return err
		}
		for _, path := range listening {
			name := strings.TrimPrefix(path, "/proc/sys/")
			if value, err := readSysctl(name); err == nil && value == "1" {
				wanted[name] = "2"
			}
		}
	}
	record.Sysctls = map[string]string{}
	for _, name := range append(slices.Collect(maps.Keys(wanted)),
		"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops",
		"kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes") {
		before, err := readSysctl(name)
		if err != nil {
			return err
		}
		record.Sysctls[name] = before
	}
	if err := c.saveState(*record); err != nil {
		return err
	}
	// In order: routers are listened to before forwarding begins.
	for _, name := range slices.Backward(slices.Sorted(maps.Keys(wanted))) {
		if record.Sysctls[name] == wanted[name] {
			continue
		}
		if err := writeSysctl(name, wanted[name]); err != nil {
			return err
		}
	}
	return nil
}

func readSysctl(name string) (string, error) {
	value, err := os.ReadFile("/proc/sys/" + name)
	return strings.TrimSpace(string(value)), err
}

func writeSysctl(name, value string) error {
	if err := os.WriteFile("/proc/sys/"+name, []byte(value), 0o644); err != nil {
		return fmt.Errorf("set sysctl %s to %s: %w", name, value, err)
	}
	return nil
}

// nftTables returns the tables of the packet filter as "family name".
func nftTables(ctx context.Context) ([]string, error) {
	out, err := output(ctx, "/", "nft", "list", "tables")
	if err != nil {
		return nil, err
	}
	var tables []string
	for line := range strings.Lines(out) {
		if table, ok := strings.CutPrefix(strings.TrimSpace(line), "table "); ok {
			tables = append(tables, table)
		}
	}
	return tables, nil
}

// findResolvers returns the host's name servers that answer and that a pod
// could reach too.
func findResolvers(ctx context.Context) []string {
	var usable []string
	// systemd-resolved is asked at a loopback address, but knows the real ones.
	for _, path := range []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"} {
		content, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		for _, server := range nameServers(string(content)) {
			if !slices.Contains(usable, server) && answers(ctx, server) {
				usable = append(usable, server)
			}
		}
	}
	return usable
}

// nameServers returns the servers that a resolv.conf names, without those that
// are reached from this machine only.
func nameServers(resolvConf string) []string {
	var servers []string
	for line := range strings.Lines(resolvConf) {
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		if ip := net.ParseIP(fields[1]); ip != nil && !ip.IsLoopback() && !ip.IsUnspecified() {
			servers = append(servers, fields[1])
		}
	}
	return servers
}

// answers reports whether the name server at address answers in time, be it to
// say that it does not know.
func answers(ctx context.Context, address string) bool {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, net.JoinHostPort(address, "53"))
	}}
	_, err := resolver.LookupNS(ctx, ".")
	var failure *net.DNSError
	return err == nil || errors.As(err, &failure) && failure.IsNotFound
}
