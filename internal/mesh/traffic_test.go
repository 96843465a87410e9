package mesh

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestTrafficOfBundles holds where what a Service says about its calls ends up.
func TestTrafficOfBundles(t *testing.T) {
	hash := func(header string) Pool {
		return Pool{MaxRequests: 9, Outlier: Outlier{ConsecutiveErrors: 3}, LoadBalancer: LoadBalancer{Policy: RingHash, Header: header}}
	}
	requests := Traffic{Timeout: time.Second, IdleTimeout: time.Minute, Retry: Retry{On: []string{"5xx"}}, Pool: hash("x-a")}
	service := func(name string, p Protocol, tr Traffic, headless bool) Service {
		at := netip.AddrFrom4([4]byte{10, 96, byte(len(name)), name[0]})
		return Service{
			Name: PortName{ServiceName{"shop", name}, 80}, Protocol: p, InMesh: true, Addresses: []netip.Addr{at}, Headless: headless,
			Identities: []Identity{web}, TargetPorts: []uint16{80}, Traffic: tr, Endpoints: []Endpoint{{Address: at, Port: 80, Identity: web}},
		}
	}
	s, err := NewSnapshot(Parts{
		Settings:   Settings{TrustDomain: "cluster.local"},
		Namespaces: []Namespace{{Name: "shop", Mode: Permissive}},
		Services: []Service{
			service("apex", HTTP, requests, false), service("v1", HTTP, Traffic{Timeout: time.Hour, Pool: hash("x-b")}, false), service("v2", HTTP, Traffic{Pool: hash("x-a")}, false),
			service("db", TCP, requests, false), service("db1", TCP, Traffic{}, false),
			service("auto", Auto, requests, false), service("headless", HTTP, requests, true), service("queue", TCP, requests, false),
		},
		Splits: []Split{
			{Apex: ServiceName{"shop", "apex"}, Backends: []WeightedShare{{"v1", 1}, {"v2", 1}}},
			{Apex: ServiceName{"shop", "db"}, Backends: []WeightedShare{{"db1", 1}}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	type seen struct {
		Timeout, Stream time.Duration
		Retries         bool
		Hashes          []string
		Connection      time.Duration
		Pool            Pool
	}
	leastLimits := Pool{MaxRequests: 9, Outlier: Outlier{ConsecutiveErrors: 3}}
	cases := map[string]struct {
		reason string
		want   seen
	}{
		"apex":     {"requests as the apex says, by the headers of those they go to", seen{time.Second, time.Minute, true, []string{"x-a", "x-b"}, 0, hash("x-a")}},
		"v1":       {"its own callers, and the endpoints of everybody", seen{Timeout: time.Hour, Hashes: []string{"x-b"}, Pool: hash("x-b")}},
		"db":       {"the weights of a split win over the load balancer", seen{Connection: time.Minute, Pool: leastLimits}},
		"queue":    {"connections have no headers to go by", seen{Connection: time.Minute, Pool: leastLimits}},
		"auto":     {"either kind of connection has its idle timeout", seen{time.Second, time.Minute, true, []string{"x-a"}, time.Minute, hash("x-a")}},
		"headless": {"callers choose the endpoint themselves", seen{time.Second, time.Minute, true, nil, 0, Pool{MaxRequests: 9}}},
	}
	for _, b := range s.Outbound(ann).Bundles {
		c, ok := cases[b.Name.Name]
		if !ok {
			continue
		}
		delete(cases, b.Name.Name)
		got := seen{Connection: b.IdleTimeout, Pool: b.Pool}
		for _, r := range b.Routes {
			got.Timeout, got.Stream, got.Retries, got.Hashes = r.Timeout, r.IdleTimeout, !r.Retry.IsZero(), r.HashHeaders
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: %s (-want +got):\n%s", b.Name, c.reason, diff)
		}
	}
	if len(cases) > 0 {
		t.Errorf("no bundle for %v", cases)
	}
}
