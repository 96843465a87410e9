package local

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// saved is what iptables-save prints on a machine where the cluster has one pod
// with a host port and somebody else's CNI network has one too.
const saved = `*nat
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:CNI-DN-aaaa - [0:0]
:CNI-DN-bbbb - [0:0]
:CNI-HOSTPORT-DNAT - [0:0]
:CNI-HOSTPORT-MASQ - [0:0]
:CNI-HOSTPORT-SETMARK - [0:0]
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A PREROUTING -j DOCKER
-A OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A POSTROUTING -m comment --comment "CNI portfwd requiring masquerade" -j CNI-HOSTPORT-MASQ
-A CNI-DN-aaaa -s 10.214.0.0/24 -p tcp -m tcp --dport 18080 -j CNI-HOSTPORT-SETMARK
-A CNI-DN-aaaa -p tcp -m tcp --dport 18080 -j DNAT --to-destination 10.214.0.3:8080
-A CNI-DN-bbbb -p tcp -m tcp --dport 18081 -j DNAT --to-destination 10.1.0.3:8080
-A CNI-HOSTPORT-DNAT -p tcp -m comment --comment "dnat name: \"outrigger\" id: \"1\"" -m multiport --dports 18080 -j CNI-DN-aaaa
-A CNI-HOSTPORT-DNAT -p tcp -m comment --comment "dnat name: \"other\" id: \"2\"" -m multiport --dports 18081 -j CNI-DN-bbbb
-A CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE
-A CNI-HOSTPORT-SETMARK -m comment --comment "CNI portfwd masquerade mark" -j MARK --set-xmark 0x2000/0x2000
COMMIT
`

func TestPortmapRemoval(t *testing.T) {
	for name, tc := range map[string]struct {
		reason, saved string
		keepShared    bool
		want          string
	}{
		"another network": {
			reason:     "where the table was there before, only our pod's chain goes",
			saved:      saved,
			keepShared: true,
			want: `*nat
-D CNI-HOSTPORT-DNAT -p tcp -m comment --comment "dnat name: \"outrigger\" id: \"1\"" -m multiport --dports 18080 -j CNI-DN-aaaa
-F CNI-DN-aaaa
-X CNI-DN-aaaa
COMMIT
`,
		},
		"ours alone": {
			reason: "where it was not, the plugin's shared chains go too",
			saved:  saved,
			want: `*nat
-D PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-D OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-D POSTROUTING -m comment --comment "CNI portfwd requiring masquerade" -j CNI-HOSTPORT-MASQ
-F CNI-HOSTPORT-DNAT
-F CNI-HOSTPORT-MASQ
-F CNI-HOSTPORT-SETMARK
-F CNI-DN-aaaa
-X CNI-HOSTPORT-DNAT
-X CNI-HOSTPORT-MASQ
-X CNI-HOSTPORT-SETMARK
-X CNI-DN-aaaa
COMMIT
`,
		},
		"nothing": {
			reason: "a cluster without host ports leaves iptables alone",
			saved:  "*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -j DOCKER\nCOMMIT\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			got := portmapRemoval(tc.saved, tc.keepShared)
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", tc.reason, diff)
			}
		})
	}
}

func TestParseMounts(t *testing.T) {
	const mountinfo = `24 30 0:22 / /sys rw,nosuid - sysfs sysfs rw
90 30 0:50 / /with\040space/x rw shared:1 master:2 - overlay overlay rw,lowerdir=/a
91 30 0:4 net:[4026532] /run/x/netns/cni-1 rw - nsfs nsfs rw
broken
`
	want := []mount{{"/sys", "sysfs"}, {"/with space/x", "overlay"}, {"/run/x/netns/cni-1", "nsfs"}}
	if diff := cmp.Diff(want, parseMounts(mountinfo), cmp.AllowUnexported(mount{})); diff != "" {
		t.Errorf("mounts (-want +got):\n%s", diff)
	}
}

func TestNameServers(t *testing.T) {
	const resolvConf = `# nameserver 192.0.2.1
search example.com
nameserver 127.0.0.53
nameserver 192.0.2.53
nameserver 2001:db8::53
nameserver ::1
nameserver
nameserver nonsense
`
	want := []string{"192.0.2.53", "2001:db8::53"}
	if diff := cmp.Diff(want, nameServers(resolvConf)); diff != "" {
		t.Errorf("name servers that pods can reach (-want +got):\n%s", diff)
	}
}

func TestMissingPackages(t *testing.T) {
	for name, tc := range map[string]struct {
		reason  string
		missing []string
		want    []string
	}{
		"all there": {reason: "nothing is installed without need"},
		"two":       {reason: "packages are named, in order", missing: []string{"runc", pluginFolder + "/bridge"}, want: []string{"containernetworking-plugins", "runc"}},
	} {
		t.Run(name, func(t *testing.T) {
			got := missingPackages(func(program string) bool { return !strings.Contains(strings.Join(tc.missing, " "), program) })
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", tc.reason, diff)
			}
		})
	}
}
