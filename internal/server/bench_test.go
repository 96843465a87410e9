package server

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/netip"
	"sync"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
	"github.com/outrigger-mesh/outrigger/internal/signing"
	"github.com/outrigger-mesh/outrigger/internal/xds"
)

func parsed(t testing.TB, c *tls.Certificate) *x509.Certificate {
	t.Helper()
	leaf, err := x509.ParseCertificate(c.Certificate[0])
	must(t, err)
	return leaf
}

// A crowd is proxies that run the loop of a stream and acknowledge everything at
// once, without a network between.
type crowd struct {
	server *Server
	heard  sync.WaitGroup
	stop   chan struct{}
	ended  sync.WaitGroup
}

// newCrowd connects n proxies of ten service accounts.
func newCrowd(b *testing.B, town *town, n int) *crowd {
	b.Helper()
	c := &crowd{server: New(Config{Metrics: prometheus.NewRegistry(), Log: logr.Discard()}), stop: make(chan struct{})}
	for i := range n {
		c.add(b, town.pod(fmt.Sprintf("p-%d", i), fmt.Sprintf("sa-%d", i%10)))
	}
	b.Cleanup(func() {
		close(c.stop)
		c.ended.Wait()
	})
	return c
}

func (c *crowd) add(b *testing.B, w mesh.Workload) {
	p := newProxy(w.ID, vouched{}, "")
	must(b, c.server.join(p))
	requests := make(chan *discoveryv3.DeltaDiscoveryRequest, 100)
	st := c.server.newStream(p, func(v any) error {
		buffers, err := codec{}.Marshal(v)
		if err != nil {
			return err
		}
		if buffers.Len() == 0 {
			b.Error("an empty message")
		}
		r := v.(*response)
		requests <- &discoveryv3.DeltaDiscoveryRequest{TypeUrl: r.typ.URL(), ResponseNonce: r.nonce}
		if r.typ == xds.Endpoints && len(r.resources) == 1 {
			c.heard.Done()
		}
		return nil
	})
	subscribe := func(snap *mesh.Snapshot) {
		view, _ := snap.View(w.ID)
		set, err := c.server.cache.Set(view)
		must(b, err)
		for _, typ := range xds.Types() {
			r := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: typ.URL()}
			if typ != xds.Cluster && typ != xds.Listener {
				r.ResourceNamesSubscribe = names(set, typ)
			}
			must(b, st.handle(r))
		}
	}
	c.ended.Go(func() {
		asked := false
		for {
			select {
			case <-c.stop:
				return
			case r := <-requests:
				must(b, st.handle(r))
			case <-p.wake:
				if !asked {
					asked = true
					snap, _ := c.server.current()
					subscribe(snap)
				}
			}
			must(b, st.advance())
			st.report()
		}
	})
}

// BenchmarkPublish measures a change of one endpoint from Publish until a
// thousand proxies were sent it.
func BenchmarkPublish(b *testing.B) {
	for _, services := range []int{100, 1000} {
		b.Run(fmt.Sprintf("proxies=1000/services=%d", services), func(b *testing.B) {
			const proxies = 1000
			town := newTown(newTestCA(b))
			for i := range services {
				town.service(fmt.Sprintf("s%d", i), byte(i))
				s := &town.parts.Services[i]
				a := s.Addresses[0].As4()
				a[2] = byte(2 + i/256)
				s.Addresses = []netip.Addr{netip.AddrFrom4(a)}
			}
			c := newCrowd(b, town, proxies)
			must(b, c.server.Publish(b.Context(), town.snapshot(b)))
			eventually(b, "all proxies have everything", func() bool {
				for _, s := range c.server.statuses() {
					if len(s.Acknowledged) < len(xds.Types()) {
						return false
					}
				}
				return true
			})
			flip := [2]*mesh.Snapshot{}
			for i := range flip {
				parts := town.parts
				parts.Services = append([]mesh.Service(nil), parts.Services...)
				endpoint := parts.Services[0].Endpoints[0]
				endpoint.Port = uint16(9000 + i)
				parts.Services[0].Endpoints = []mesh.Endpoint{endpoint}
				snap, err := mesh.NewSnapshot(parts)
				must(b, err)
				flip[i] = snap
			}
			round := func(i int) {
				c.heard.Add(proxies)
				must(b, c.server.Publish(b.Context(), flip[i%2]))
				c.heard.Wait()
			}
			b.ResetTimer()
			for i := range b.N {
				round(i)
			}
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/1000, "ms/push")
		})
	}
}

// BenchmarkCurrent is what it costs both ends that an agent asks who signs, over a
// connection of its own.
func BenchmarkCurrent(b *testing.B) {
	w := newWorld(b, func(c *Config) {
		c.AskRate, c.AskBurst = 1e9, 1e9
		c.Log = logr.Discard()
	})
	for b.Loop() {
		config := &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true}
		conn, err := grpc.NewClient("passthrough:///"+w.address, grpc.WithTransportCredentials(credentials.NewTLS(config)))
		must(b, err)
		_, err = signing.NewCertificatesClient(conn).Current(b.Context(), &signing.CurrentRequest{})
		must(b, err)
		must(b, conn.Close())
	}
}
