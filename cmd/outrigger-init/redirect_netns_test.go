//go:build netns

package main

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/outrigger-mesh/outrigger/internal/iptables"
)

const (
	proxy uint32 = 1500
	app   uint32 = 1000
)

// twentyPorts are more than one multiport match can hold.
func twentyPorts() []uint16 {
	var ports []uint16
	for i := range uint16(20) {
		ports = append(ports, 7000+10*i)
	}
	return ports
}

func prefixes(texts ...string) []netip.Prefix {
	var list []netip.Prefix
	for _, text := range texts {
		list = append(list, netip.MustParsePrefix(text))
	}
	return list
}

// flavours are the ways in which outrigger-init reaches this kernel, each as the
// container that leads it there. A kernel may lack the legacy tables.
func flavours(t *testing.T, binary string) map[flavour]container {
	t.Helper()
	all := map[flavour]container{
		nft: {binary, toolsOf(t, nft, legacy), []string{"net_admin"}},
	}
	if out, err := exec.Command("iptables-legacy-save", "-t", "nat").CombinedOutput(); err == nil {
		all[legacy] = container{binary, toolsOf(t, legacy), []string{"net_admin", "net_raw"}}
	} else {
		t.Logf("this kernel has no legacy tables, only nft is tried: %s", out)
	}
	return all
}

// TestTraffic applies each story's settings with the real program to a real
// kernel and sees where real connections arrive.
func TestTraffic(t *testing.T) {
	stories := map[string]struct {
		settings iptables.Settings
		checks   func(*world, iptables.Family) map[call]string
	}{
		"plain": {iptables.Settings{}, plainChecks},
		"excluded": {iptables.Settings{
			ExcludeInboundPorts:  append(twentyPorts(), 9100),
			ExcludeOutboundPorts: append(twentyPorts(), 9100),
			ExcludeOutboundCIDRs: prefixes("198.51.100.0/24", "2001:db8:100::/48"),
			ExcludeUIDs:          []uint32{65534},
		}, excludedChecks},
		"included": {iptables.Settings{
			IncludeOutboundCIDRs: prefixes("198.51.100.0/24", "2001:db8:100::/48"),
			ExcludeOutboundCIDRs: prefixes("198.51.100.128/25", "2001:db8:100:8000::/49"),
		}, includedChecks},
	}
	for kind, c := range flavours(t, build(t)) {
		for name, story := range stories {
			t.Run(fmt.Sprintf("%s/%s", kind, name), func(t *testing.T) {
				w := newWorld(t, true)
				applyTwice(t, w, c, kind, story.settings)

				ports := append(twentyPorts(), 80, 9100)
				w.serve(w.peer, "peer", ports...)
				w.serve(w.pod, "app", append(ports, 8080)...)
				w.serve(w.pod, "agent", 15010, 15020)
				w.serve(w.pod, "outbound", 15001)
				w.serve(w.pod, "inbound", 15003)
				w.serveAt(w.pod, "own", iptables.IPv4, podIPv4+":99")
				w.serveAt(w.pod, "own", iptables.IPv6, "["+podIPv6+"]:99")
				for _, f := range []iptables.Family{iptables.IPv4, iptables.IPv6} {
					for c, want := range story.checks(w, f) {
						check(t, w, story.settings, c, want)
					}
				}
			})
		}
	}
}

// check makes the call, and holds what Redirects says of it against the kernel.
func check(t *testing.T, w *world, settings iptables.Settings, c call, want string) {
	t.Helper()
	if want == "agent" || want == "app" || want == "own" || want == "inbound" || want == "outbound" || want == "peer" {
		want += " " + c.to
	}
	if got := w.call(c); got != want {
		t.Errorf("%+v: answered by %q, want %q", c, got, want)
	}
	to := netip.MustParseAddrPort(c.to)
	outside := c.from == w.pod && !c.udp && to.Addr().String() != podIPv4 && to.Addr().String() != podIPv6
	if redirected := strings.HasPrefix(want, "outbound"); outside && settings.Redirects(to, c.uid) != redirected {
		t.Errorf("%+v: Redirects() = %t, but the kernel does otherwise", c, !redirected)
	}
}

func plainChecks(w *world, f iptables.Family) map[call]string {
	at := func(v4, v6 string, port uint16) string { return address(v4, v6, f, port) }
	pod := func(port uint16) string { return at(podIPv4, podIPv6, port) }
	checks := map[call]string{
		{from: w.pod, uid: app, to: at("192.0.2.1", "2001:db8::1", 80)}:                        "outbound",
		{from: w.pod, uid: app, to: at("192.0.2.1", "2001:db8::1", 81)}:                        "outbound", // nobody listens there
		{from: w.pod, uid: app, to: at(peerIPv4, peerIPv6, 80)}:                                "outbound",
		{from: w.pod, uid: 0, to: at("192.0.2.1", "2001:db8::1", 80)}:                          "outbound",
		{from: w.pod, uid: proxy, to: at("192.0.2.1", "2001:db8::1", 80)}:                      "peer",
		{from: w.pod, uid: app, to: at("169.254.169.254", "fd00:ec2::254", 80)}:                "peer",
		{from: w.pod, uid: app, to: pod(8080)}:                                                 "app",
		{from: w.pod, uid: app, to: at("127.0.0.1", "::1", 8080)}:                              "app",
		{from: w.pod, uid: proxy, to: at("127.0.0.1", "::1", 8080)}:                            "app",
		{from: w.pod, uid: proxy, to: pod(8080)}:                                               "inbound",
		{from: w.pod, uid: proxy, source: f.Source().String(), to: pod(8080)}:                  "app",
		{from: w.pod, uid: proxy, source: f.Source().String(), to: at("127.0.0.1", "::1", 80)}: "app",
		{from: w.pod, uid: proxy, source: f.Source().String(), to: at("127.0.0.7", "::7", 99)}: "own",
		{from: w.peer, to: pod(8080)}:                                                          "inbound",
		{from: w.peer, to: pod(81)}:                                                            "inbound", // nobody listens there
		{from: w.peer, to: pod(15010)}:                                                         "agent",
		{from: w.peer, to: pod(15020)}:                                                         "agent",
	}
	for _, port := range []uint16{15000, 15001, 15002, 15003, 15011, 15019} {
		checks[call{from: w.peer, to: pod(port)}] = "inbound"
	}
	if f == iptables.IPv4 {
		checks[call{from: w.pod, uid: app, to: "127.0.0.9:8080"}] = "app"
	}
	return checks
}

func excludedChecks(w *world, f iptables.Family) map[call]string {
	at := func(v4, v6 string, port uint16) string { return address(v4, v6, f, port) }
	checks := map[call]string{
		{from: w.pod, uid: app, to: at("192.0.2.1", "2001:db8::1", 80)}:        "outbound",
		{from: w.pod, uid: app, to: at("198.51.101.1", "2001:db8:101::1", 80)}: "outbound",
		{from: w.pod, uid: app, to: at("198.51.100.1", "2001:db8:100::1", 80)}: "peer",
		{from: w.pod, uid: 65534, to: at("192.0.2.1", "2001:db8::1", 80)}:      "peer",
		{from: w.pod, uid: 65533, to: at("192.0.2.1", "2001:db8::1", 80)}:      "outbound",
		{from: w.pod, uid: app, to: at("192.0.2.1", "2001:db8::1", 7005)}:      "outbound",
		{from: w.peer, to: at(podIPv4, podIPv6, 8080)}:                         "inbound",
		{from: w.peer, to: at(podIPv4, podIPv6, 7005)}:                         "inbound",
		{from: w.peer, to: at(podIPv4, podIPv6, 15020)}:                        "agent",
		{from: w.pod, uid: proxy, to: at(podIPv4, podIPv6, 7000)}:              "inbound",
	}
	for _, port := range append(twentyPorts(), 9100) {
		checks[call{from: w.pod, uid: app, to: at("192.0.2.1", "2001:db8::1", port)}] = "peer"
		checks[call{from: w.peer, to: at(podIPv4, podIPv6, port)}] = "app"
	}
	return checks
}

func includedChecks(w *world, f iptables.Family) map[call]string {
	at := func(v4, v6 string, port uint16) string { return address(v4, v6, f, port) }
	return map[call]string{
		{from: w.pod, uid: app, to: at("198.51.100.1", "2001:db8:100::1", 80)}:        "outbound",
		{from: w.pod, uid: proxy, to: at("198.51.100.1", "2001:db8:100::1", 80)}:      "peer",
		{from: w.pod, uid: app, to: at("198.51.100.200", "2001:db8:100:8000::1", 80)}: "peer",
		{from: w.pod, uid: app, to: at("192.0.2.1", "2001:db8::1", 80)}:               "peer",
		{from: w.peer, to: at(podIPv4, podIPv6, 8080)}:                                "inbound",
	}
}

// TestOnlyTCP: datagrams and echo requests, in and out, at any port, go where they
// always went.
func TestOnlyTCP(t *testing.T) {
	for kind, c := range flavours(t, build(t)) {
		t.Run(string(kind), func(t *testing.T) {
			w := newWorld(t, true)
			succeeded(t, w.outriggerInit(t.Context(), c, "apply", "{}"))
			ends := map[string][]string{w.pod: {podIPv4, podIPv6}, w.peer: {peerIPv4, peerIPv6}}
			for namespace, addresses := range ends {
				for _, a := range addresses {
					for _, port := range []uint16{53, 8080, 15001, 15003} {
						w.serveUDP(namespace, netip.AddrPortFrom(netip.MustParseAddr(a), port).String())
					}
				}
			}
			for from := range ends {
				for to, addresses := range ends {
					for _, a := range addresses {
						for _, port := range []uint16{53, 8080, 15001, 15003} {
							at := netip.AddrPortFrom(netip.MustParseAddr(a), port).String()
							for _, uid := range []uint32{app, proxy} {
								if got := w.call(call{from: from, uid: uid, to: at, udp: true}); got != "datagram" {
									t.Errorf("a datagram from %s as %d to %s of %s: %s", from, uid, at, to, got)
								}
							}
						}
						if err := w.echo(from, a); err != nil {
							t.Errorf("an echo request from %s to %s of %s: %v", from, a, to, err)
						}
					}
				}
			}
		})
	}
}

// applyTwice checks that the first run writes and the second changes nothing.
func applyTwice(t *testing.T, w *world, c container, kind flavour, settings iptables.Settings) {
	t.Helper()
	first := w.outriggerInit(t.Context(), c, "apply", settings.String())
	succeeded(t, first, "tables="+string(kind), "changed=true")
	after := w.saved(kind)
	for _, f := range []iptables.Family{iptables.IPv4, iptables.IPv6} {
		if !strings.Contains(first.stderr, fmt.Sprintf(`msg="probe connection was redirected" family=%s`, f)) {
			t.Errorf("no probe connection by %s; the program said:\n%s", f, first.stderr)
		}
	}
	second := w.outriggerInit(t.Context(), c, "apply", settings.String())
	succeeded(t, second, "tables="+string(kind), "changed=false")
	if strings.Contains(second.stderr, "changed=true") {
		t.Errorf("the second run wrote again:\n%s", second.stderr)
	}
	if diff := cmp.Diff(after, w.saved(kind)); diff != "" {
		t.Errorf("the second run changed the rules (-first +second):\n%s", diff)
	}
}

func succeeded(t *testing.T, r result, said ...string) {
	t.Helper()
	for _, part := range said {
		if !strings.Contains(r.stderr, part) {
			t.Errorf("the program did not say %q", part)
		}
	}
	if r.code != 0 || t.Failed() {
		t.Fatalf("exit code %d, output:\n%s", r.code, r.stderr)
	}
}

// TestReadsBack: whatever the settings allow is written in the very form in which
// both flavours print it, or the comparison would fail good rules.
func TestReadsBack(t *testing.T) {
	stories := map[string]iptables.Settings{
		"other numbers": {OutboundPort: 1, InboundPort: 65535, ProxyUID: 4294967294, AgentPorts: []uint16{65534}, ExcludeUIDs: []uint32{0, 4294967293}},
		"everything":    {IncludeOutboundCIDRs: prefixes("0.0.0.0/0", "::/0")},
		"nothing":       {ExcludeOutboundCIDRs: prefixes("0.0.0.0/0", "::/0")},
		"odd ranges": {ExcludeOutboundCIDRs: prefixes("0.0.0.0/1", "10.8.0.7/13", "255.255.255.255/32",
			"::1:2/128", "::/96", "::ffff:0:0:0/96", "1:0:0:2::/64", "1:0:2:0:3:0:4:0/127", "64:ff9b::/96", "ff00::/9")},
	}
	for kind, c := range flavours(t, build(t)) {
		for name, settings := range stories {
			t.Run(fmt.Sprintf("%s/%s", kind, name), func(t *testing.T) {
				w := newWorld(t, true)
				succeeded(t, w.outriggerInit(t.Context(), c, "apply", settings.String()), "changed=true")
				again := w.outriggerInit(t.Context(), c, "apply", settings.String())
				succeeded(t, again, "family=IPv4 tables="+string(kind)+" changed=false", "family=IPv6 tables="+string(kind)+" changed=false")
			})
		}
	}
}

// TestOtherSettings: rules of an earlier run with other settings, in the middle
// of rules of somebody else, become those of the new settings.
func TestOtherSettings(t *testing.T) {
	const foreign = "-A OUTPUT -p udp -j RETURN"
	for kind, c := range flavours(t, build(t)) {
		t.Run(string(kind), func(t *testing.T) {
			fresh := newWorldWithRule(t, kind, foreign)
			succeeded(t, fresh.outriggerInit(t.Context(), c, "apply", "{}"))
			want := fresh.saved(kind)
			if !strings.Contains(want, foreign) {
				t.Fatalf("a rule of somebody else is gone:\n%s", want)
			}
			earlier := iptables.Settings{ExcludeInboundPorts: twentyPorts(), ExcludeUIDs: []uint32{7}}
			succeeded(t, fresh.outriggerInit(t.Context(), c, "apply", earlier.String()), "changed=true")
			if fresh.saved(kind) == want {
				t.Fatal("other settings changed nothing")
			}
			succeeded(t, fresh.outriggerInit(t.Context(), c, "apply", "{}"), "changed=true")
			if diff := cmp.Diff(want, fresh.saved(kind)); diff != "" {
				t.Errorf("rules after going back (-want +got):\n%s", diff)
			}
		})
	}
}

func newWorldWithRule(t *testing.T, kind flavour, rule string) *world {
	t.Helper()
	w := newWorld(t, true)
	w.addRule(kind, rule)
	return w
}

// addRule writes a rule as somebody else in the pod's network would.
func (w *world) addRule(kind flavour, rule string) {
	w.t.Helper()
	command := append([]string{"netns", "exec", w.pod, "iptables-" + string(kind), "-t", "nat"}, strings.Fields(rule)...)
	w.ip(command...)
}

// TestKeepsFlavour: a pod whose rules are legacy gets no second set in nft when
// the program runs again and could write either.
func TestKeepsFlavour(t *testing.T) {
	all := flavours(t, build(t))
	c, ok := all[legacy]
	if !ok {
		return // nothing to keep on a kernel that has one flavour
	}
	w := newWorld(t, true)
	succeeded(t, w.outriggerInit(t.Context(), c, "apply", "{}"), "tables=legacy changed=true")
	c.path = toolsOf(t, nft, legacy)
	again := w.outriggerInit(t.Context(), c, "apply", "{}")
	succeeded(t, again, "family=IPv4 tables=legacy changed=false", "family=IPv6 tables=legacy changed=false")
	if strings.Contains(again.stderr, "nft") {
		t.Errorf("nft was used too:\n%s", again.stderr)
	}
}

// TestWithoutIPv6: a pod that has no IPv6 address needs no IPv6 tools; one that
// has must not start without its rules.
func TestWithoutIPv6(t *testing.T) {
	c := container{build(t), toolsOf(t, nft), []string{"net_admin"}}
	ipv6Tools, err := filepath.Glob(filepath.Join(c.path, "ip6tables-*"))
	if err != nil || len(ipv6Tools) == 0 {
		t.Fatalf("no IPv6 tools to take away: %v", err)
	}
	for _, path := range ipv6Tools {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("without", func(t *testing.T) {
		w := newWorld(t, false)
		succeeded(t, w.outriggerInit(t.Context(), c, "apply", "{}"), "IPv6 left alone", "family=IPv4 tables=nft changed=true")
	})
	t.Run("with", func(t *testing.T) {
		w := newWorld(t, true)
		failed(t, w.outriggerInit(t.Context(), c, "apply", "{}"), exitFailure, "IPv6", "ip6tables-nft-save is not in this image")
	})
}

func failed(t *testing.T, r result, code int, said ...string) {
	t.Helper()
	if r.code != code {
		t.Errorf("exit code %d, want %d", r.code, code)
	}
	for _, part := range said {
		if !strings.Contains(r.stderr, part) {
			t.Errorf("the program did not say %q", part)
		}
	}
	if t.Failed() {
		t.Logf("output:\n%s", r.stderr)
	}
}

// TestFailures: what goes wrong in clusters is said in words.
func TestFailures(t *testing.T) {
	binary := build(t)
	good := container{binary, toolsOf(t, nft), []string{"net_admin"}}
	cases := map[string]struct {
		reason    string
		container container
		before    func(*world)
		settings  string
		want      []string
	}{
		"no capability": {
			reason:    "a pod whose security context was changed after injection",
			container: container{binary, good.path, nil},
			want:      []string{"NET_ADMIN is missing", "securityContext.capabilities.add"},
		},
		"no tools": {
			reason:    "an image that somebody built without iptables",
			container: container{binary, t.TempDir(), good.capabilities},
			want:      []string{"iptables-nft-save is not in this image", "iptables-legacy-save is not in this image"},
		},
		"legacy without NET_RAW": {
			reason:    "a node whose kernel has only the legacy tables",
			container: container{binary, toolsOf(t, legacy), good.capabilities},
			want:      []string{"NET_ADMIN and NET_RAW"},
		},
		"port taken": {
			reason:    "a container before ours that listens where Envoy will",
			container: good,
			before:    func(w *world) { w.serve(w.pod, "squatter", 15001) },
			want:      []string{"port 15001", "taken by a container that started before"},
		},
		"rules of others before ours": {
			reason:    "rules that are right but never reached are found by the probe alone",
			container: good,
			before:    func(w *world) { w.addRule(nft, "-I OUTPUT -j ACCEPT") },
			want:      []string{"a probe connection was not redirected"},
		},
		"rules of others, address answers": {
			reason:    "the same where somebody answers at the probe's address",
			container: good,
			before: func(w *world) {
				w.addRule(nft, "-I OUTPUT -j ACCEPT")
				w.serve(w.peer, "peer", 80)
			},
			want: []string{"a probe connection reached 192.0.2.1:80 instead of 127.0.0.1:15001"},
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, false)
			if tc.before != nil {
				tc.before(w)
			}
			failed(t, w.outriggerInit(t.Context(), tc.container, "apply", "{}"), exitFailure, tc.want...)
		})
	}
}

// TestProbeIsSkipped where it could prove nothing, and the program says so.
func TestProbeIsSkipped(t *testing.T) {
	c := container{build(t), toolsOf(t, nft), []string{"net_admin"}}
	cases := map[string]struct {
		reason   string
		settings iptables.Settings
		before   func(*world)
		want     string
	}{
		"user": {
			reason:   "the program's own user is left out",
			settings: iptables.Settings{ExcludeUIDs: []uint32{0}},
			want:     "leave out user 0",
		},
		"all": {
			reason:   "every address is left out",
			settings: iptables.Settings{ExcludeOutboundCIDRs: prefixes("0.0.0.0/0")},
			want:     "every address",
		},
		"no route": {
			reason: "a pod from which nothing leads out",
			before: func(w *world) { w.ip("-n", w.pod, "link", "set", "eth0", "down") },
			want:   "no IPv4 route leads out of the pod",
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, false)
			if tc.before != nil {
				tc.before(w)
			}
			succeeded(t, w.outriggerInit(t.Context(), c, "apply", tc.settings.String()), "no probe connection", tc.want)
			if got := w.saved(nft); !strings.Contains(got, "-j OUTRIGGER_OUTBOUND") {
				t.Errorf("%s: the rules are not there:\n%s", tc.reason, got)
			}
		})
	}
}

// TestIPv6Only: a pod without an IPv4 address gets the IPv4 rules all the same,
// since they cost nothing and an address may come later; only IPv6 is tried.
func TestIPv6Only(t *testing.T) {
	c := container{build(t), toolsOf(t, nft), []string{"net_admin"}}
	w := newWorld(t, true)
	w.ip("-n", w.pod, "address", "delete", podIPv4+"/24", "dev", "eth0")
	succeeded(t, w.outriggerInit(t.Context(), c, "apply", "{}"),
		"no IPv4 route leads out of the pod", "family=IPv4 tables=nft changed=true",
		`"probe connection was redirected" family=IPv6 to=[2001:db8::1]:80`)
}

// TestProbeFindsAWay in pods whose network is unusual.
func TestProbeFindsAWay(t *testing.T) {
	c := container{build(t), toolsOf(t, nft), []string{"net_admin"}}
	w := newWorld(t, false)
	w.ip("-n", w.pod, "route", "delete", "default")
	settings := iptables.Settings{ExcludeOutboundPorts: []uint16{80, 81}}
	succeeded(t, w.outriggerInit(t.Context(), c, "apply", settings.String()), "probe connection was redirected", "to=10.99.0.3:82")
}
