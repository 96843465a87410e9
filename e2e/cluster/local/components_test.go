package local

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"
)

func TestNetworkConfiguration(t *testing.T) {
	for name, tc := range map[string]struct {
		reason    string
		dualStack bool
		want      []string
		nodeIPs   string
	}{
		"IPv4":       {reason: "a kernel without IPv6 gives pods one address", want: []string{podsIPv4}, nodeIPs: bridgeIPv4},
		"dual stack": {reason: "otherwise they get one of each, IPv4 first", dualStack: true, want: []string{podsIPv4, podsIPv6}, nodeIPs: bridgeIPv4 + "," + bridgeIPv6},
	} {
		t.Run(name, func(t *testing.T) {
			s := Config{State: "/state"}.settings(tc.dualStack, nil)
			content, err := s.render("cni.conflist")
			if err != nil {
				t.Fatal(err)
			}
			var config struct {
				Plugins []struct {
					Bridge string
					IPAM   struct {
						DataDir string
						Ranges  [][]struct{ Subnet string }
					}
				}
			}
			if err := json.Unmarshal(content, &config); err != nil {
				t.Fatalf("%s: %v\n%s", tc.reason, err, content)
			}
			var got []string
			for _, ranges := range config.Plugins[0].IPAM.Ranges {
				got = append(got, ranges[0].Subnet)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("%s: ranges (-want +got):\n%s", tc.reason, diff)
			}
			if got := s.nodeIPs(); got != tc.nodeIPs {
				t.Errorf("%s: got node addresses %s, want %s", tc.reason, got, tc.nodeIPs)
			}
			if got := strings.Count(masqueradeRules(s.Pods), "add rule"); got != len(tc.want) {
				t.Errorf("%s: got %d rules that masquerade, want %d", tc.reason, got, len(tc.want))
			}
		})
	}
}

// TestEveryFileRenders reads each configuration file back. That the programs
// accept them is shown by TestLifecycle.
func TestEveryFileRenders(t *testing.T) {
	c := Config{State: "/state"}
	for _, resolvers := range [][]string{nil, {"192.0.2.53"}} {
		s := c.settings(true, resolvers)
		for _, name := range []string{"kubelet.yaml", "kube-proxy.yaml", "coredns.yaml"} {
			content, err := s.render(name)
			if err != nil {
				t.Fatal(err)
			}
			for document := range strings.SplitSeq(string(content), "\n---\n") {
				var object struct{ Kind string }
				if err := yaml.Unmarshal([]byte(document), &object); err != nil || object.Kind == "" {
					t.Errorf("%s: got kind %q, error %v\n%s", name, object.Kind, err, document)
				}
			}
		}
	}
}

func TestOtherNames(t *testing.T) {
	for name, tc := range map[string]struct {
		reason         string
		resolvers      []string
		present, other string
	}{
		"host can resolve": {reason: "names outside of the cluster are passed on", resolvers: []string{"192.0.2.53"}, present: "forward .", other: "NXDOMAIN"},
		"host cannot":      {reason: "nobody should wait for a server that is not there", present: "NXDOMAIN", other: "forward ."},
	} {
		t.Run(name, func(t *testing.T) {
			content, err := Config{State: "/state"}.settings(false, tc.resolvers).render("coredns.yaml")
			if err != nil {
				t.Fatal(err)
			}
			if got := string(content); !strings.Contains(got, tc.present) || strings.Contains(got, tc.other) {
				t.Errorf("%s: want %q and not %q in\n%s", tc.reason, tc.present, tc.other, got)
			}
		})
	}
}

func TestIDTellsClustersApart(t *testing.T) {
	first, second := Config{State: "/a"}, Config{State: "/b"}
	if first.runFolder() == second.runFolder() {
		t.Errorf("two state folders share %s", first.runFolder())
	}
	// containerd's limit for the folder of its shims' sockets.
	if longest := (Config{State: strings.Repeat("/long", 100)}).runFolder() + "/s"; len(longest) > 42 {
		t.Errorf("%s is too long for sockets", longest)
	}
}
