package xds_test

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
	"github.com/outrigger-mesh/outrigger/internal/xds"
	"github.com/outrigger-mesh/outrigger/internal/xds/envoytest"
)

// big is a permissive View with n HTTP services of three endpoints.
func big(t testing.TB, n int) mesh.View {
	t.Helper()
	v := mesh.View{
		Trust:    &mesh.Trust{Key: "t", TrustDomain: trustDomain, Bundle: envoytest.NewCA(t).Bundle()},
		Inbound:  &mesh.Inbound{Key: "i", TrustDomain: trustDomain, Identity: store, Ports: []mesh.InboundPort{{Port: 80, Protocol: mesh.HTTP, Mode: mesh.Permissive}}},
		Outbound: &mesh.Outbound{Key: "o", TrustDomain: trustDomain, Caller: store, ServiceCIDRs: cidrs("10.96.0.0/12"), AllowEgress: true},
	}
	for i := range n {
		name := port(fmt.Sprintf("ns-%03d", i/100), fmt.Sprintf("service-%02d", i%100), 80)
		b := &mesh.Bundle{
			Key: fmt.Sprint(i), Name: name, TrustDomain: trustDomain, Protocol: mesh.HTTP, Routes: all(name),
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)})}, Identities: []mesh.Identity{store},
		}
		for e := range 3 {
			b.Endpoints = append(b.Endpoints, mesh.Endpoint{Address: netip.AddrFrom4([4]byte{10, byte(e), byte(i >> 8), byte(i)}), Port: 8080, Identity: store})
		}
		v.Outbound.Bundles = append(v.Outbound.Bundles, b)
	}
	return v
}

// changed is v with one bundle of another key, as the next Snapshot has it.
func changed(v mesh.View, i int) mesh.View {
	v.Outbound = new(*v.Outbound)
	v.Outbound.Bundles = append([]*mesh.Bundle{}, v.Outbound.Bundles...)
	one := new(*v.Outbound.Bundles[i%len(v.Outbound.Bundles)])
	one.Key = fmt.Sprintf("%s changed %d", one.Key, i)
	one.Endpoints = append([]mesh.Endpoint{endpoint(fmt.Sprintf("10.9.%d.%d:8080", i>>8&255, i&255), store)}, one.Endpoints...)
	v.Outbound.Bundles[i%len(v.Outbound.Bundles)] = one
	return v
}

func mustSet(b testing.TB, c *xds.Cache, v mesh.View) *xds.Set {
	b.Helper()
	s, err := c.Set(v)
	if err != nil {
		b.Fatal(err)
	}
	return s
}

func BenchmarkSet(b *testing.B) {
	for _, n := range []int{100, 1000, 5000} {
		v := big(b, n)
		b.Run(fmt.Sprintf("fresh/%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				mustSet(b, xds.NewCache(), v)
			}
		})
		b.Run(fmt.Sprintf("changed/%d", n), func(b *testing.B) {
			b.ReportAllocs()
			c, i := xds.NewCache(), 0
			mustSet(b, c, v)
			for b.Loop() {
				i++
				mustSet(b, c, changed(v, i))
				c.Forget()
			}
		})
		b.Run(fmt.Sprintf("again/%d", n), func(b *testing.B) {
			b.ReportAllocs()
			c := xds.NewCache()
			mustSet(b, c, v)
			for b.Loop() {
				mustSet(b, c, v) // as the next replica asks
			}
		})
	}
}

func BenchmarkDiff(b *testing.B) {
	for _, n := range []int{100, 1000, 5000} {
		v, c := big(b, n), xds.NewCache()
		from, to := mustSet(b, c, v), mustSet(b, c, changed(v, n/2))
		b.Run(fmt.Sprintf("fresh/%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				xds.Diff(nil, from)
			}
		})
		b.Run(fmt.Sprintf("changed/%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				xds.Diff(from, to)
			}
		})
	}
}
