package iptables

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/outrigger-mesh/outrigger/internal/golden"
)

func TestMain(m *testing.M) { os.Exit(golden.CheckStale(m, "testdata")) }

func cidrs(texts ...string) []netip.Prefix {
	list := make([]netip.Prefix, 0, len(texts))
	for _, text := range texts {
		list = append(list, netip.MustParsePrefix(text))
	}
	return list
}

// twentyPorts are more than one multiport match can hold.
func twentyPorts() []uint16 {
	ports := make([]uint16, 0, 20)
	for i := range uint16(20) {
		ports = append(ports, 7000+10*i)
	}
	return ports
}

// stories are settings that a pod may have, with the reason why the case is
// kept. The rules of each, both families, are in testdata/<story>.
func stories() map[string]struct {
	reason   string
	settings Settings
} {
	return map[string]struct {
		reason   string
		settings Settings
	}{
		"plain": {
			reason: "a pod without annotations: everything is redirected",
		},
		"own-addresses": {
			reason: "what a pod has by the time the rules are written; further addresses of a family are none of Envoy's business",
			settings: Settings{
				OwnAddresses: []netip.Addr{netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("fd02::3"), netip.MustParseAddr("192.168.7.7")},
			},
		},
		"excluded-inbound-ports": {
			reason: "exceptions stand before the redirect; an agent port named again makes no second rule",
			settings: Settings{
				ExcludeInboundPorts: []uint16{9100, 8125, 9100, 15020},
			},
		},
		"excluded-outbound": {
			reason: "addresses go to the tables of their family, host bits are cleared, ports to both",
			settings: Settings{
				ExcludeOutboundPorts: []uint16{5432, 3306},
				ExcludeOutboundCIDRs: cidrs("10.8.0.7/16", "fd00:8::/32", "192.0.2.1/32"),
			},
		},
		"included": {
			reason: "with a list of what is included nothing else is redirected, and exclusions still win",
			settings: Settings{
				IncludeOutboundCIDRs: cidrs("10.96.0.0/12", "10.244.0.0/16", "fd00:96::/108"),
				ExcludeOutboundCIDRs: cidrs("10.96.0.10/32"),
			},
		},
		"included-ipv4-only": {
			reason: "a list that names only IPv4 leaves IPv6 alone",
			settings: Settings{
				IncludeOutboundCIDRs: cidrs("10.96.0.0/12"),
			},
		},
		"included-everything": {
			reason: "0.0.0.0/0 written out includes link-local addresses, which are direct otherwise",
			settings: Settings{
				IncludeOutboundCIDRs: cidrs("0.0.0.0/0", "::/0"),
			},
		},
		"excluded-uids": {
			reason: "users are left out before any address is looked at; the proxy's own uid needs no second rule",
			settings: Settings{
				ExcludeUIDs: []uint32{65534, 1337, 1500, 0},
			},
		},
		"many-ports": {
			reason: "more than fifteen ports, in both directions",
			settings: Settings{
				ExcludeInboundPorts:  twentyPorts(),
				ExcludeOutboundPorts: twentyPorts(),
			},
		},
		"own-ports": {
			reason: "every number is a setting",
			settings: Settings{
				OutboundPort: 16001, InboundPort: 16003, ProxyUID: 2000, AgentPorts: []uint16{16020},
			},
		},
	}
}

func TestRules(t *testing.T) {
	for name, story := range stories() {
		t.Run(name, func(t *testing.T) {
			if err := story.settings.Validate(); err != nil {
				t.Fatalf("%s: Validate() = %v", story.reason, err)
			}
			got := fmt.Sprintf("### IPv4\n%s\n### IPv6\n%s", Rules(story.settings, IPv4), Rules(story.settings, IPv6))
			golden.Compare(t, filepath.Join("testdata", name, "rules.golden.txt"), []byte(got))
		})
	}
}

func TestRulesDoNotDependOnOrder(t *testing.T) {
	for name, story := range stories() {
		t.Run(name, func(t *testing.T) {
			shuffled := story.settings
			shuffled.ExcludeInboundPorts = shuffledTwice(shuffled.ExcludeInboundPorts)
			shuffled.ExcludeOutboundPorts = shuffledTwice(shuffled.ExcludeOutboundPorts)
			shuffled.ExcludeOutboundCIDRs = shuffledTwice(shuffled.ExcludeOutboundCIDRs)
			shuffled.IncludeOutboundCIDRs = shuffledTwice(shuffled.IncludeOutboundCIDRs)
			shuffled.ExcludeUIDs = shuffledTwice(shuffled.ExcludeUIDs)
			for _, f := range []Family{IPv4, IPv6} {
				if diff := cmp.Diff(Rules(story.settings, f), Rules(shuffled, f)); diff != "" {
					t.Errorf("%s rules of the same settings in another order (-want +got):\n%s", f, diff)
				}
			}
		})
	}
}

// shuffledTwice returns the list twice over, in some order.
func shuffledTwice[E any](list []E) []E {
	list = slices.Concat(list, list)
	rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	return list
}

func TestRulesLeaveTheSettingsAlone(t *testing.T) {
	s := Settings{ExcludeOutboundPorts: []uint16{2, 1, 2}, ExcludeOutboundCIDRs: cidrs("10.8.0.7/16", "10.1.0.0/16")}
	before := s.String()
	Rules(s, IPv4)
	if after := s.String(); after != before {
		t.Errorf("Rules changed the caller's lists from %s to %s", before, after)
	}
}

func TestRedirects(t *testing.T) {
	cases := map[string]struct {
		reason   string
		settings Settings
		to       string
		uid      uint32
		want     bool
	}{
		"plain":          {reason: "everything is redirected", to: "192.0.2.1:80", want: true},
		"plain IPv6":     {reason: "everything is redirected", to: "[2001:db8::1]:80", want: true},
		"proxy":          {reason: "the proxy's calls have been through it", to: "192.0.2.1:80", uid: 1500},
		"loopback":       {reason: "loopback is not outside", to: "127.1.2.3:80"},
		"metadata":       {reason: "instance metadata is direct", to: "169.254.169.254:80"},
		"metadata IPv6":  {reason: "instance metadata is direct", to: "[fd00:ec2::254]:80"},
		"node DNS":       {reason: "DNS over TCP at the node's cache is direct", to: "169.254.20.10:53"},
		"excluded uid":   {reason: "a user left out", settings: Settings{ExcludeUIDs: []uint32{7}}, to: "192.0.2.1:80", uid: 7},
		"excluded port":  {reason: "a port left out", settings: Settings{ExcludeOutboundPorts: []uint16{80}}, to: "192.0.2.1:80"},
		"other port":     {reason: "another port is not left out", settings: Settings{ExcludeOutboundPorts: []uint16{81}}, to: "192.0.2.1:80", want: true},
		"excluded range": {reason: "a range left out", settings: Settings{ExcludeOutboundCIDRs: cidrs("192.0.2.9/24")}, to: "192.0.2.1:80"},
		"included":       {reason: "a range included", settings: Settings{IncludeOutboundCIDRs: cidrs("192.0.2.0/24")}, to: "192.0.2.1:80", want: true},
		"not included":   {reason: "outside of what is included", settings: Settings{IncludeOutboundCIDRs: cidrs("10.0.0.0/8")}, to: "192.0.2.1:80"},
		"included metadata": {
			reason:   "an inclusion in so many words wins over what is direct by default",
			settings: Settings{IncludeOutboundCIDRs: cidrs("169.254.169.254/32")}, to: "169.254.169.254:80", want: true,
		},
		"both": {
			reason:   "exclusions win over inclusions",
			settings: Settings{IncludeOutboundCIDRs: cidrs("10.0.0.0/8"), ExcludeOutboundCIDRs: cidrs("10.1.0.0/16")}, to: "10.1.2.3:80",
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			if got := tc.settings.Redirects(netip.MustParseAddrPort(tc.to), tc.uid); got != tc.want {
				t.Errorf("%s: Redirects(%s, %d) = %t, want %t", tc.reason, tc.to, tc.uid, got, tc.want)
			}
		})
	}
}

func TestLoopbackAddresses(t *testing.T) {
	for f, want := range map[Family][2]string{IPv4: {"127.0.0.6", "127.0.0.7"}, IPv6: {"::6", "::7"}} {
		if got := [2]string{f.Source().String(), f.Own().String()}; got != want {
			t.Errorf("%s: Source and Own are %v, want %v", f, got, want)
		}
	}
}

func BenchmarkRules(b *testing.B) {
	s := Settings{
		ExcludeInboundPorts:  twentyPorts(),
		ExcludeOutboundPorts: twentyPorts(),
		ExcludeOutboundCIDRs: cidrs("10.8.0.0/16", "fd00:8::/32"),
		ExcludeUIDs:          []uint32{1337},
	}
	b.ReportAllocs()
	for b.Loop() {
		if text := Rules(s, IPv4); !strings.HasSuffix(text, "COMMIT\n") {
			b.Fatal(text)
		}
	}
}
