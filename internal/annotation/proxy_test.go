package annotation

import (
	"errors"
	"math"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"k8s.io/apimachinery/pkg/api/resource"
)

func TestParseProxy(t *testing.T) {
	cases := map[string]struct {
		reason      string
		annotations map[string]string
		want        Proxy
		refused     []string // keys
	}{
		"nothing": {reason: "most pods keep the mesh's settings", annotations: map[string]string{"example.com/proxy-cpu": "1"}},
		"everything": {
			reason: "each annotation sets its own field",
			annotations: map[string]string{
				ProxyCPU: "100m", ProxyMemory: "64Mi", ProxyCPULimit: "2", ProxyMemoryLimit: "1Gi",
				ProxyImage: "example.com/proxy:v1", ProxyLogLevel: "DEBUG", ProxyConcurrency: "4",
			},
			want: Proxy{
				CPU: new(resource.MustParse("100m")), Memory: new(resource.MustParse("64Mi")),
				CPULimit: new(resource.MustParse("2")), MemoryLimit: new(resource.MustParse("1Gi")),
				Image: "example.com/proxy:v1", LogLevel: "debug", Concurrency: 4,
			},
		},
		"one": {
			reason:      "istio#35905: one annotation must not make the other defaults vanish, so the rest stays unsaid",
			annotations: map[string]string{ProxyCPULimit: "1"}, want: Proxy{CPULimit: new(resource.MustParse("1"))},
		},
		"all faulty": {
			reason: "every mistake is told at once",
			annotations: map[string]string{
				ProxyCPU: "lots", ProxyMemory: "-1", ProxyCPULimit: "", ProxyMemoryLimit: "0",
				ProxyImage: "a b", ProxyLogLevel: "verbose", ProxyConcurrency: "0",
			},
			refused: []string{ProxyCPU, ProxyMemory, ProxyCPULimit, ProxyMemoryLimit, ProxyImage, ProxyLogLevel, ProxyConcurrency},
		},
		"too many threads": {reason: "each worker takes memory", annotations: map[string]string{ProxyConcurrency: "129"}, refused: []string{ProxyConcurrency}},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := ParseProxy(tc.annotations)
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", tc.reason, diff)
			}
			checkRefused(t, tc.annotations, err, tc.refused)
		})
	}
}

func TestParseRedirect(t *testing.T) {
	sixteen := "1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16"
	cases := map[string]struct {
		reason      string
		annotations map[string]string
		want        Redirect
		refused     []string
	}{
		"nothing": {reason: "everything is redirected"},
		"ours and OSM's": {
			reason: "both lists count, sorted and without duplicates",
			annotations: map[string]string{
				ExcludeInboundPorts: "9090, 80,", OSMExcludeInboundPorts: "80,22",
				ExcludeOutboundPorts: "5432", OSMExcludeOutboundPorts: "3306",
				ExcludeOutboundCIDRs: "10.1.2.3/8,fd00::1/8", OSMExcludeOutboundCIDRs: "10.0.0.0/8",
				IncludeOutboundCIDRs: "0.0.0.0/0", OSMIncludeOutboundCIDRs: "::/0",
				ExcludeUIDs: "0,1337",
			},
			want: Redirect{
				ExcludeInboundPorts: []uint16{22, 80, 9090}, ExcludeOutboundPorts: []uint16{3306, 5432},
				ExcludeOutboundCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")},
				IncludeOutboundCIDRs: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")},
				ExcludeUIDs:          []uint32{0, 1337},
			},
		},
		"more than fifteen ports": {
			reason:      "OSM's pods crash-looped from the sixteenth port on",
			annotations: map[string]string{OSMExcludeOutboundPorts: sixteen},
			want:        Redirect{ExcludeOutboundPorts: []uint16{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}},
		},
		"the mesh's own ports": {
			reason:      "nobody may reach the outbound port from outside; calling such a port elsewhere is fine",
			annotations: map[string]string{ExcludeInboundPorts: "15001", ExcludeOutboundPorts: "15001"},
			refused:     []string{ExcludeInboundPorts},
		},
		"all faulty": {
			reason: "every mistake is told at once, under the key that it was written with",
			annotations: map[string]string{
				ExcludeInboundPorts: "0", OSMExcludeInboundPorts: "65536", ExcludeOutboundPorts: "80;81", OSMExcludeOutboundPorts: "http",
				ExcludeOutboundCIDRs: "10.0.0.0", OSMExcludeOutboundCIDRs: "::ffff:10.0.0.0/104", IncludeOutboundCIDRs: "10.0.0.0/33",
				OSMIncludeOutboundCIDRs: "*", ExcludeUIDs: "4294967295",
			},
			refused: []string{
				ExcludeInboundPorts, OSMExcludeInboundPorts, ExcludeOutboundPorts, OSMExcludeOutboundPorts,
				ExcludeOutboundCIDRs, OSMExcludeOutboundCIDRs, IncludeOutboundCIDRs, OSMIncludeOutboundCIDRs, ExcludeUIDs,
			},
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := ParseRedirect(tc.annotations)
			if diff := cmp.Diff(tc.want, got, cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
				t.Errorf("%s (-want +got):\n%s", tc.reason, diff)
			}
			checkRefused(t, tc.annotations, err, tc.refused)
		})
	}
}

// checkRefused wants one Error for each key, which names key, value and what is
// allowed.
func checkRefused(t *testing.T, annotations map[string]string, err error, keys []string) {
	t.Helper()
	var got []string
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, one := range joined.Unwrap() {
			var e *Error
			if !errors.As(one, &e) {
				t.Fatalf("%v is not an *Error", one)
			}
			got = append(got, e.Key)
			if e.Value != annotations[e.Key] || e.Allowed == "" || !strings.Contains(e.Error(), e.Key) {
				t.Errorf("%q does not say key, value and what is allowed", e)
			}
		}
	}
	if diff := cmp.Diff(keys, got); diff != "" {
		t.Errorf("refused keys (-want +got):\n%s", diff)
	}
}

func TestUnionChangesNothing(t *testing.T) {
	a := Redirect{ExcludeInboundPorts: make([]uint16, 0, 8)}
	a.ExcludeInboundPorts = append(a.ExcludeInboundPorts, 9, 1)
	b := Redirect{ExcludeInboundPorts: []uint16{5}, ExcludeUIDs: []uint32{math.MaxUint32 - 1}}
	got := a.Union(b)
	if diff := cmp.Diff([]uint16{1, 5, 9}, got.ExcludeInboundPorts); diff != "" {
		t.Errorf("union (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]uint16{9, 1}, a.ExcludeInboundPorts); diff != "" {
		t.Errorf("Union changed its receiver (-want +got):\n%s", diff)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("100m", "debug", "4", "80,443", "10.0.0.0/8,fd00::/8", "1000")
	f.Add("-1", "", "x", ",,", "::ffff:1.2.3.4/96", "4294967295")
	f.Add("1e400", "\n", "9999999999999999999999", "80:443", "10.0.0.0/8,", " 0 ")
	f.Fuzz(func(t *testing.T, quantity, level, threads, ports, cidrs, uids string) {
		proxy, err := ParseProxy(map[string]string{ProxyCPU: quantity, ProxyLogLevel: level, ProxyConcurrency: threads})
		if err == nil && (proxy.CPU == nil || proxy.CPU.Sign() <= 0 || proxy.Concurrency < 1 || proxy.Concurrency > MaxConcurrency) {
			t.Errorf("accepted %+v", proxy)
		}
		r, err := ParseRedirect(map[string]string{ExcludeInboundPorts: ports, IncludeOutboundCIDRs: cidrs, ExcludeUIDs: uids})
		if err != nil {
			return
		}
		for i, p := range r.ExcludeInboundPorts {
			if p == 0 || i > 0 && r.ExcludeInboundPorts[i-1] >= p {
				t.Errorf("ports %v are not sorted ports", r.ExcludeInboundPorts)
			}
		}
		for _, c := range r.IncludeOutboundCIDRs {
			if !c.IsValid() || c != c.Masked() || c.Addr().Is4In6() {
				t.Errorf("accepted range %v", c)
			}
		}
	})
}
