package xds_test

import (
	"net/netip"
	"regexp"
	"testing"

	"github.com/outrigger-mesh/outrigger/internal/golden"
	"github.com/outrigger-mesh/outrigger/internal/mesh"
	"github.com/outrigger-mesh/outrigger/internal/xds"
	"github.com/outrigger-mesh/outrigger/internal/xds/envoytest"
)

const trustDomain = "cluster.local"

func id(ns, sa string) mesh.Identity { return mesh.Identity{Namespace: ns, ServiceAccount: sa} }

func port(ns, name string, port uint16) mesh.PortName {
	return mesh.PortName{ServiceName: mesh.ServiceName{Namespace: ns, Name: name}, Port: port}
}

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, a := range list {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

// all sends every request to one bundle.
func all(to mesh.PortName) []mesh.Route {
	return []mesh.Route{{Shares: []mesh.Share{{To: to, Weight: 1}}}}
}

// bookstore is a View with one of everything.
func bookstore(roots string) mesh.View {
	store, v1, v2 := port("books", "store", 80), port("books", "store-v1", 80), port("books", "store-v2", 80)
	db, queue, api := port("books", "db", 3306), port("books", "queue", 5000), port("default", "kubernetes", 443)
	web, kafka := port("books", "web", 8080), port("books", "kafka", 9092)
	server := mesh.Endpoint{Address: netip.MustParseAddr("10.1.0.11"), Port: 8080, Identity: id("books", "store"), Zone: "a"}
	old := mesh.Endpoint{Address: netip.MustParseAddr("10.1.0.12"), Port: 8080, Identity: id("books", "store"), Zone: "b", Draining: true}
	outside := mesh.Endpoint{Address: netip.MustParseAddr("10.1.0.13"), Port: 8080}
	bundle := func(b mesh.Bundle) *mesh.Bundle {
		b.TrustDomain = trustDomain
		return &b
	}
	return mesh.View{
		Trust: &mesh.Trust{Key: "t1", TrustDomain: trustDomain, Bundle: roots},
		Inbound: &mesh.Inbound{
			Key: "i1", TrustDomain: trustDomain, Identity: id("books", "buyer"),
			Ports: []mesh.InboundPort{
				{Port: 8080, Protocol: mesh.HTTP, Rules: []mesh.Rule{
					{Source: "TrafficTarget books/all", Callers: []mesh.Identity{id("books", "admin")}},
					{Source: "TrafficTarget books/read", Callers: []mesh.Identity{id("books", "store")}, Match: mesh.HTTPMatch{
						Path: mesh.StringMatch{Kind: mesh.Regex, Value: "/books/[^/]+"}, Methods: []string{"GET", "HEAD"},
						Headers: []mesh.HeaderMatch{{Name: ":authority", Value: mesh.StringMatch{Kind: mesh.Exact, Value: "store"}}, {Name: "x-any"}},
					}},
				}},
				{Port: 8081, Protocol: mesh.HTTP, Mode: mesh.Permissive},
				{Port: 8082, Protocol: mesh.HTTP},
				{Port: 8083, Mode: mesh.Permissive, PlainText: true},
				{Port: 8084, Callers: []mesh.Identity{id("books", "store")}},
				{Port: 8085, Protocol: mesh.TCP, Callers: []mesh.Identity{id("books", "store"), id("books", "thief")}},
				{Port: 8086, Protocol: mesh.TCP},
				{Port: 8087, Protocol: mesh.TCP, Mode: mesh.Permissive},
				{Port: 8089, Protocol: mesh.HTTP, Mode: mesh.Permissive, PlainText: true},
				{Port: 8088, Protocol: mesh.GRPC},
				{Port: 15001, Protocol: mesh.GRPC},
			},
		},
		Outbound: &mesh.Outbound{
			Key: "o1", TrustDomain: trustDomain, Caller: id("books", "buyer"),
			ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12"), netip.MustParsePrefix("fd01::/112")},
			Bundles: []*mesh.Bundle{
				bundle(mesh.Bundle{Name: db, Protocol: mesh.TCP, Addresses: addrs("10.96.0.3"), Identities: []mesh.Identity{id("books", "db")}, Endpoints: []mesh.Endpoint{
					{Address: netip.MustParseAddr("10.1.0.20"), Port: 3306, Identity: id("books", "db"), Weight: 90},
					{Address: netip.MustParseAddr("10.1.0.21"), Port: 3306, Identity: id("books", "db"), Weight: 10},
				}}),
				bundle(mesh.Bundle{Name: kafka, Headless: true, Identities: []mesh.Identity{id("books", "kafka")}, Routes: all(kafka), Endpoints: []mesh.Endpoint{
					{Address: netip.MustParseAddr("10.1.0.30"), Port: 9092, Identity: id("books", "kafka"), Hostname: "kafka-0"},
					{Address: netip.MustParseAddr("fd02::31"), Port: 9092, Hostname: "kafka-1"},
				}}),
				bundle(mesh.Bundle{Name: port("books", "kafka-too", 9092), Headless: true, Protocol: mesh.TCP, Endpoints: []mesh.Endpoint{
					{Address: netip.MustParseAddr("10.1.0.30"), Port: 9092, Identity: id("books", "kafka")},
					{Address: netip.MustParseAddr("10.1.0.32"), Port: 9092, Identity: id("books", "kafka")},
				}}),
				bundle(mesh.Bundle{Name: queue, Addresses: addrs("10.96.0.4"), Routes: all(queue), Endpoints: []mesh.Endpoint{outside}}),
				bundle(mesh.Bundle{
					Name: store, Protocol: mesh.HTTP, Addresses: addrs("10.96.0.1", "fd01::1"), Identities: []mesh.Identity{id("books", "store")},
					Endpoints: []mesh.Endpoint{server, old, outside},
					Routes: []mesh.Route{
						{Match: mesh.HTTPMatch{Path: mesh.StringMatch{Kind: mesh.Prefix, Value: "/new/"}, Methods: []string{"GET"}}, Shares: []mesh.Share{{To: v2, Weight: 1}}, Retry: mesh.Retry{On: []string{"5xx"}, Attempts: 5, PerTryTimeout: 1e9}},
						{Match: mesh.HTTPMatch{Path: mesh.StringMatch{Kind: mesh.Exact, Value: "/gone"}}},
						{Shares: []mesh.Share{{To: v1, Weight: 10}, {To: v2, Weight: 90}, {To: store, Weight: 0}}, Timeout: 1e9},
					},
				}),
				bundle(mesh.Bundle{Name: v1, Protocol: mesh.HTTP, Addresses: addrs("10.96.0.5"), Routes: all(v1), Identities: []mesh.Identity{id("books", "store")}, Endpoints: []mesh.Endpoint{server}}),
				bundle(mesh.Bundle{Name: v2, Protocol: mesh.HTTP, Routes: all(v2)}),
				bundle(mesh.Bundle{Name: web, Protocol: mesh.GRPC, Addresses: addrs("10.96.0.6"), Routes: all(web), Endpoints: []mesh.Endpoint{old}}),
				bundle(mesh.Bundle{Name: api, Passthrough: true, Addresses: addrs("10.96.0.7")}),
			},
		},
	}
}

func TestSetOfView(t *testing.T) {
	t.Parallel()
	if _, err := xds.NewCache().Set(seal(t, bookstore(""))); err == nil {
		t.Error("a View without roots was encoded; Envoy has no way to trust nobody")
	}
}

// roots are others in every run.
var roots = regexp.MustCompile(`-----BEGIN(.|\s)*?-----END CERTIFICATE-----`)

func TestEnvoyTakesAll(t *testing.T) {
	t.Parallel()
	ca := envoytest.NewCA(t)
	set, err := xds.NewCache().Set(seal(t, bookstore(ca.Bundle())))
	if err != nil {
		t.Fatal(err)
	}
	e := envoytest.Start(t, envoytest.Pod{Namespace: "books", Name: "buyer-1", ServiceAccount: "buyer", Certificate: ca.Secret(t, id("books", "buyer").URI(trustDomain))})
	e.Apply(t, set)
	dump, err := set.Dump()
	if err != nil {
		t.Fatal(err)
	}
	golden.Compare(t, "testdata/bookstore.golden.yaml", roots.ReplaceAll(dump, []byte("ROOTS")))
}

func cidrs(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range list {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}
