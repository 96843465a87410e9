package main

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/outrigger-mesh/outrigger/bootstrap"
	"github.com/outrigger-mesh/outrigger/internal/golden"
	"github.com/outrigger-mesh/outrigger/internal/iptables"
)

func TestMain(m *testing.M) { os.Exit(golden.CheckStale(m, "testdata")) }

func TestCommandLine(t *testing.T) {
	cases := map[string]struct {
		reason string
		args   []string
		code   int
		want   string // on standard error
	}{
		"nothing":        {reason: "on a machine of its own it would cut it off; so it never guesses", code: exitUsage, want: "usage:"},
		"no settings":    {reason: "a forgotten argument is not the default", args: []string{"apply"}, code: exitUsage, want: "want one: the settings"},
		"two":            {reason: "a second argument would be ignored", args: []string{"apply", "{}", "{}"}, code: exitUsage, want: "2 arguments"},
		"unknown flag":   {reason: "", args: []string{"apply", "--dry", "{}"}, code: exitUsage, want: "-dry"},
		"help":           {reason: "asking is no mistake", args: []string{"--help"}, want: "--dry-run"},
		"not JSON":       {reason: "", args: []string{"apply", "15001"}, code: exitUsage, want: "decode redirect settings"},
		"refused":        {reason: "the message names field, value and what is allowed", args: []string{"apply", `{"xin":[15001]}`}, code: exitUsage, want: "ExcludeInboundPorts: 15001; allowed is"},
		"dry run":        {reason: "", args: []string{"apply", "--dry-run", "{}"}},
		"without a word": {reason: "apply is the default", args: []string{"--dry-run", "{}"}},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			if code := run(t.Context(), tc.args, &stdout, &stderr); code != tc.code {
				t.Errorf("%s: exit code %d, want %d", tc.reason, code, tc.code)
			}
			if got := stderr.String(); !strings.Contains(got, tc.want) || tc.want == "" && got != "" {
				t.Errorf("%s: standard error %q, want %q in it", tc.reason, got, tc.want)
			}
		})
	}
}

func TestDryRun(t *testing.T) {
	var stdout, stderr bytes.Buffer
	if code := run(t.Context(), []string{"apply", "--dry-run", `{"xin":[9100]}`}, &stdout, &stderr); code != 0 {
		t.Fatalf("exit code %d: %s", code, &stderr)
	}
	golden.Compare(t, "testdata/dry-run.golden.txt", stdout.Bytes())
}

// TestDefaults: what the proxy listens on, runs as and announces is what the
// rules assume when the settings say nothing.
func TestDefaults(t *testing.T) {
	type contract struct{ Outbound, Inbound, Metrics, Agent, UID int }
	want := contract{bootstrap.OutboundPort, bootstrap.InboundPort, bootstrap.MetricsPort, bootstrap.AgentPort, bootstrap.ProxyUID}
	got := contract{
		int(iptables.DefaultOutboundPort), int(iptables.DefaultInboundPort),
		int(iptables.MetricsPort), int(iptables.AgentPort), int(iptables.DefaultProxyUID),
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("package iptables differs from package bootstrap (-bootstrap +iptables):\n%s", diff)
	}
}

func TestReachableByIPv6(t *testing.T) {
	cases := map[string]struct {
		reason string
		addrs  []string
		want   bool
	}{
		"IPv4":       {reason: "no IPv6 at all", addrs: []string{"127.0.0.1/8", "10.0.0.1/24"}},
		"link-local": {reason: "every device has one; nobody outside the link can use it", addrs: []string{"::1/128", "fe80::1/64"}},
		"our own":    {reason: "an earlier run left ::6", addrs: []string{"::1/128", "::6/128"}},
		"global":     {reason: "an address for all", addrs: []string{"::1/128", "2001:db8::1/64"}, want: true},
		"private":    {reason: "an address inside the cluster", addrs: []string{"fd00::1/64"}, want: true},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			if got := reachableByIPv6(parsePrefixes(tc.addrs...)); got != tc.want {
				t.Errorf("%s: reachableByIPv6(%v) = %t, want %t", tc.reason, tc.addrs, got, tc.want)
			}
		})
	}
}

func parsePrefixes(texts ...string) []netip.Prefix {
	var list []netip.Prefix
	for _, text := range texts {
		list = append(list, netip.MustParsePrefix(text))
	}
	return list
}

func TestProbeTargets(t *testing.T) {
	own := parsePrefixes("127.0.0.1/8", "10.0.0.2/24", "::1/128", "fe80::2/64", "fd00::2/64")
	cases := map[string]struct {
		reason string
		prober prober
		want   []string
	}{
		"plain": {
			reason: "addresses of nobody first, neighbours for pods without a default route",
			prober: prober{},
			want:   []string{"192.0.2.1:80", "10.0.0.3:80", "10.0.0.4:80"},
		},
		"IPv6": {
			reason: "the same, and no link-local ones, which are never redirected",
			prober: prober{family: iptables.IPv6},
			want:   []string{"[2001:db8::1]:80", "[fd00::3]:80", "[fd00::4]:80"},
		},
		"included": {
			reason: "only what is redirected proves anything; never the pod's own address",
			prober: prober{settings: iptables.Settings{IncludeOutboundCIDRs: parsePrefixes("10.0.0.2/31", "fd01::/64")}},
			want:   []string{"10.0.0.3:80", "10.0.0.3:80"},
		},
		"everything included": {
			reason: "0.0.0.0 is this pod itself",
			prober: prober{settings: iptables.Settings{IncludeOutboundCIDRs: parsePrefixes("0.0.0.0/0")}},
			want:   []string{"192.0.2.1:80", "0.0.0.1:80", "0.0.0.2:80", "10.0.0.3:80", "10.0.0.4:80"},
		},
		"excluded ports": {
			reason: "the first port that is left",
			prober: prober{settings: iptables.Settings{
				ExcludeOutboundPorts: []uint16{81, 80},
				ExcludeOutboundCIDRs: parsePrefixes("10.0.0.0/8"),
			}},
			want: []string{"192.0.2.1:82"},
		},
		"own user": {
			reason: "nothing of this user is redirected",
			prober: prober{settings: iptables.Settings{ExcludeUIDs: []uint32{0}}},
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			tc.prober.own = own
			var got []string
			for _, target := range tc.prober.targets() {
				got = append(got, target.String())
			}
			if diff := cmp.Diff(tc.want, got, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("%s: targets() (-want +got):\n%s", tc.reason, diff)
			}
		})
	}
}

// TestExplain: complaints as the tools of iptables 1.8 make them.
func TestExplain(t *testing.T) {
	exited := errors.New("exit status 1")
	cases := map[string]struct {
		reason    string
		tables    tables
		err       error
		complaint string
		want      []string
	}{
		"no tool": {
			reason: "an image without iptables", tables: tables{iptables.IPv6, nft}, err: exec.ErrNotFound,
			want: []string{"ip6tables-nft-restore is not in this image"},
		},
		"no nft": {
			reason: "a kernel without nf_tables", tables: tables{iptables.IPv4, nft}, err: exited,
			complaint: "iptables-nft-restore v1.8.9 (nf_tables): Could not fetch rule set generation id: Invalid argument",
			want:      []string{"rule set generation id", "modprobe", "nft_compat"},
		},
		"no match": {
			reason: "a kernel without one of the matches", tables: tables{iptables.IPv4, nft}, err: exited,
			complaint: "Warning: Extension owner revision 0 not supported, missing kernel module?\niptables-nft-restore: line 12: RULE_APPEND failed (No such file or directory)",
			want:      []string{"owner", "xt_owner", "modprobe"},
		},
		"no legacy": {
			reason: "a kernel without legacy tables", tables: tables{iptables.IPv4, legacy}, err: exited,
			complaint: "iptables-legacy-restore v1.8.9 (legacy): iptables-restore: unable to initialize table 'nat'",
			want:      []string{"iptable_nat", "modprobe"},
		},
		"refused": {
			reason: "a seccomp profile that denies netlink", tables: tables{iptables.IPv4, nft}, err: exited,
			complaint: "iptables-nft-restore: Could not fetch rule set generation id: Permission denied (you must be root)",
			want:      []string{"must be root", "seccomp"},
		},
		"refused, legacy": {
			reason: "legacy tables want more than the injected container has by default", tables: tables{iptables.IPv4, legacy}, err: exited,
			complaint: "iptables-legacy-restore v1.8.9 (legacy): iptables-restore: unable to initialize table 'nat': Permission denied (you must be root)",
			want:      []string{"NET_ADMIN and NET_RAW"},
		},
		"lock": {
			reason: "somebody else is writing", tables: tables{iptables.IPv4, legacy}, err: exited,
			complaint: "Another app is currently holding the xtables lock. Perhaps you want to use the -w option?",
			want:      []string{"another program holds the lock"},
		},
		"no lock file": {
			reason: "a container without /proc", tables: tables{iptables.IPv4, legacy}, err: exited,
			complaint: "Fatal: can't open lock file /proc/self/fd/3: No such file or directory",
			want:      []string{"needs its /proc"},
		},
		"native rules": {
			reason: "a table that nft made", tables: tables{iptables.IPv4, nft}, err: exited,
			complaint: "iptables-nft-save v1.8.9 (nf_tables): table `nat' is incompatible, use 'nft' tool.",
			want:      []string{"is incompatible", "written with nft"},
		},
		"unknown": {
			reason: "what we have no advice for is told as it is", tables: tables{iptables.IPv4, nft}, err: exited,
			complaint: "segmentation fault",
			want:      []string{"iptables-nft-restore: exit status 1: segmentation fault"},
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			got := explain(tc.tables, "restore", tc.err, tc.complaint).Error()
			for _, part := range tc.want {
				if !strings.Contains(got, part) {
					t.Errorf("%s: explain() = %q, want %q in it", tc.reason, got, part)
				}
			}
		})
	}
}
