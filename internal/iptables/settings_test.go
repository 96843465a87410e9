package iptables

import (
	"encoding/json"
	"math"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestSettingsAreSmall(t *testing.T) {
	cases := map[string]struct {
		reason   string
		settings Settings
		want     string
	}{
		"zero": {reason: "a plain pod says nothing", want: `{}`},
		"all": {
			reason: "every field survives the journey",
			settings: Settings{
				OutboundPort: 1, InboundPort: 2, ProxyUID: 3, AgentPorts: []uint16{4},
				ExcludeInboundPorts: []uint16{5}, ExcludeOutboundPorts: []uint16{6},
				ExcludeOutboundCIDRs: cidrs("10.0.0.0/8"), IncludeOutboundCIDRs: cidrs("fd00::/8"), ExcludeUIDs: []uint32{7},
			},
			want: `{"out":1,"in":2,"uid":3,"agent":[4],"xin":[5],"xout":[6],"xcidr":["10.0.0.0/8"],"cidr":["fd00::/8"],"xuid":[7]}`,
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, tc.settings.String()); diff != "" {
				t.Errorf("%s: String() (-want +got):\n%s", tc.reason, diff)
			}
			got, err := Parse(tc.settings.String())
			if err != nil {
				t.Fatalf("%s: Parse(): %v", tc.reason, err)
			}
			if diff := cmp.Diff(tc.settings, got, cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
				t.Errorf("%s: Parse(String()) (-want +got):\n%s", tc.reason, diff)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	cases := map[string]struct {
		reason string
		text   string
		want   []string // all in the message
	}{
		"nothing":        {reason: "a forgotten argument is not the default", text: ``, want: []string{"decode redirect settings"}},
		"not JSON":       {reason: "", text: `15001`, want: []string{"decode redirect settings"}},
		"unknown field":  {reason: "a newer injector may mean something by it", text: `{"xgid":[1]}`, want: []string{"xgid"}},
		"two objects":    {reason: "the second would be ignored", text: `{}{}`, want: []string{"more text"}},
		"port too large": {reason: "", text: `{"xin":[65536]}`, want: []string{"xin", "65536"}},
		"not a range":    {reason: "an address needs its length", text: `{"xcidr":["10.0.0.1"]}`, want: []string{"10.0.0.1"}},
		"empty range":    {reason: "the zero range matches nothing", text: `{"xcidr":[""]}`, want: []string{"ExcludeOutboundCIDRs", "10.0.0.0/8"}},
		"invalid":        {reason: "what is parsed is valid too", text: `{"xout":[0]}`, want: []string{"ExcludeOutboundPorts", "1 to 65535"}},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			_, err := Parse(tc.text)
			checkError(t, tc.reason, err, tc.want)
		})
	}
}

func TestValidate(t *testing.T) {
	cases := map[string]struct {
		reason   string
		settings Settings
		want     []string // all in the message; none: valid
	}{
		"zero":            {reason: "a pod without annotations"},
		"agent port":      {reason: "naming a port that is open anyway does no harm", settings: Settings{ExcludeInboundPorts: []uint16{15020}}},
		"same ports":      {reason: "one listener cannot be both", settings: Settings{OutboundPort: 15003}, want: []string{"OutboundPort", "15003"}},
		"agent port 0":    {reason: "there is no port 0", settings: Settings{AgentPorts: []uint16{0}}, want: []string{"AgentPorts", "0"}},
		"agent on Envoy":  {reason: "it would open Envoy's outbound side to everybody", settings: Settings{AgentPorts: []uint16{15001}}, want: []string{"AgentPorts", "15001"}},
		"inbound port 0":  {reason: "there is no port 0", settings: Settings{ExcludeInboundPorts: []uint16{80, 0}}, want: []string{"ExcludeInboundPorts", "0"}},
		"own port":        {reason: "it would open the outbound side to everybody", settings: Settings{ExcludeInboundPorts: []uint16{15001}}, want: []string{"ExcludeInboundPorts", "15001", "15000 to 15020"}},
		"own range":       {reason: "the range is kept for the proxy", settings: Settings{ExcludeInboundPorts: []uint16{15000}}, want: []string{"ExcludeInboundPorts", "15000"}},
		"moved own port":  {reason: "wherever the proxy listens", settings: Settings{OutboundPort: 9001, ExcludeInboundPorts: []uint16{9001}}, want: []string{"ExcludeInboundPorts", "9001"}},
		"outbound port 0": {reason: "there is no port 0", settings: Settings{ExcludeOutboundPorts: []uint16{0}}, want: []string{"ExcludeOutboundPorts", "0"}},
		"zero range":      {reason: "a range that nobody wrote", settings: Settings{IncludeOutboundCIDRs: []netip.Prefix{{}}}, want: []string{"IncludeOutboundCIDRs", "fd00::/8"}},
		"mapped range":    {reason: "neither table would have it", settings: Settings{ExcludeOutboundCIDRs: cidrs("::ffff:10.0.0.0/104")}, want: []string{"ExcludeOutboundCIDRs", "::ffff:10.0.0.0/104"}},
		"nobody":          {reason: "the kernel has no such user", settings: Settings{ExcludeUIDs: []uint32{math.MaxUint32}}, want: []string{"ExcludeUIDs", "4294967295"}},
		"several": {
			reason:   "all faults are told at once",
			settings: Settings{ExcludeInboundPorts: []uint16{0}, ExcludeOutboundPorts: []uint16{0}},
			want:     []string{"ExcludeInboundPorts", "ExcludeOutboundPorts"},
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			checkError(t, tc.reason, tc.settings.Validate(), tc.want)
		})
	}
}

func checkError(t *testing.T, reason string, err error, want []string) {
	t.Helper()
	if len(want) == 0 {
		if err != nil {
			t.Errorf("%s: error %v, want none", reason, err)
		}
		return
	}
	if err == nil {
		t.Fatalf("%s: no error, want one with %q", reason, want)
	}
	for _, part := range want {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%s: error %q, want %q in it", reason, err, part)
		}
	}
}

// FuzzParse: whatever Parse accepts can be written as rules that differ from
// themselves in nothing, and as JSON that means the same.
func FuzzParse(f *testing.F) {
	for _, story := range stories() {
		f.Add(story.settings.String())
	}
	f.Add(`{"xcidr":["::1:2/128","10.8.0.7/0"]}`)
	f.Add(`{"agent":[0],"uid":4294967295}`)
	f.Fuzz(func(t *testing.T, text string) {
		s, err := Parse(text)
		if err != nil {
			return
		}
		again, err := Parse(s.String())
		if err != nil {
			t.Fatalf("Parse(%s), which String made: %v", s, err)
		}
		for _, family := range []Family{IPv4, IPv6} {
			rules := Rules(s, family)
			if other := Rules(again, family); other != rules {
				t.Errorf("%s rules of %s change on the way through JSON:\n%s", family, s, cmp.Diff(rules, other))
			}
			if diffs := Differences(rules, rules); len(diffs) != 0 {
				t.Errorf("%s rules of %s differ from themselves: %q", family, s, diffs)
			}
		}
		if !json.Valid([]byte(s.String())) {
			t.Errorf("String() = %s, which is not JSON", s)
		}
	})
}
