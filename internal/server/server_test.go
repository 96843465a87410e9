package server

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/go-logr/logr/testr"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
	"github.com/outrigger-mesh/outrigger/internal/signing"
	"github.com/outrigger-mesh/outrigger/internal/xds"
)

const trustDomain = "cluster.local"

// patience is how long a test waits for what must happen.
const patience = 20 * time.Second

// A testCA is a mesh's root that also signs leaves, of any content.
type testCA struct {
	root *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newTestCA(t testing.TB) *testCA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	return testCAOf(t, key)
}

// testCAOf is a CA whose root has that key.
func testCAOf(t testing.TB, key *ecdsa.PrivateKey) *testCA {
	t.Helper()
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "root"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	must(t, err)
	root, err := x509.ParseCertificate(der)
	must(t, err)
	return &testCA{root: root, key: key}
}

// leaf returns a certificate that ends after the given time; more are further URIs.
func (ca *testCA) leaf(t testing.TB, uri, podUID string, lifetime time.Duration, more ...string) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	var uris []*url.URL
	for _, uri := range append([]string{uri}, more...) {
		u, err := url.Parse(uri)
		must(t, err)
		uris = append(uris, u)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{SerialNumber: podUID}, URIs: uris,
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(lifetime),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.root, key.Public(), ca.key)
	must(t, err)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func (ca *testCA) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(ca.root)
	return p
}

func (ca *testCA) bundle() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.root.Raw}))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// testCredentials serve with a certificate of the CA.
type testCredentials struct {
	serving *tls.Certificate

	mu      sync.Mutex
	trusted []mesh.TrustDomain
}

func (c *testCredentials) TLS() (*tls.Certificate, error) { return c.serving, nil }

func (c *testCredentials) Trusted() ([]mesh.TrustDomain, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.trusted, nil
}

// trust replaces what is trusted.
func (c *testCredentials) trust(domains ...mesh.TrustDomain) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.trusted = domains
}

func credentialsOf(t testing.TB, ca *testCA) *testCredentials {
	t.Helper()
	return &testCredentials{
		serving: ca.leaf(t, serverID, "", time.Hour),
		trusted: []mesh.TrustDomain{{Name: trustDomain, Bundle: ca.bundle()}},
	}
}

// testPods is the cluster as it is, which snapshots follow.
type testPods map[mesh.ProxyID]mesh.Identity

func (p testPods) Identity(_ context.Context, id mesh.ProxyID) (mesh.Identity, bool, error) {
	identity, ok := p[id]
	return identity, ok, nil
}

// Located reports none: pods have their certificates from the Signer.
func (testPods) Located(context.Context, mesh.ProxyID, netip.Addr) (bool, error) { return false, nil }

// signerFunc is a Signer.
type signerFunc func(token string, csr []byte) (signing.Signed, error)

func (f signerFunc) Sign(_ context.Context, token string, csr []byte) (signing.Signed, error) {
	return f(token, csr)
}

func (f signerFunc) Current() (*signing.Authority, error) { return testAuthority, nil }

var testAuthority = &signing.Authority{Name: "built-in", Generation: "1", TrustDomain: trustDomain}

// refusesAll is a Signer for tests of streams.
var refusesAll = signerFunc(func(string, []byte) (signing.Signed, error) { return signing.Signed{}, errors.New("not now") })

// A world is a server that runs, and what it needs.
type world struct {
	*Server
	ca       *testCA
	shows    *testCredentials
	pods     testPods
	registry *prometheus.Registry
	address  string
	stop     func() error // ends Serve and returns its error
}

func newWorld(t testing.TB, change func(*Config)) *world {
	t.Helper()
	w := &world{ca: newTestCA(t), pods: testPods{}, registry: prometheus.NewRegistry()}
	w.shows = credentialsOf(t, w.ca)
	cfg := Config{
		Credentials: w.shows,
		Pods:        w.pods,
		Signer:      refusesAll,
		Metrics:     w.registry,
		StreamRate:  10_000,
		CallerRate:  10_000,
		// A test that does not acknowledge clusters says so by setting it.
		WarmTime: time.Hour,
		StopTime: 10 * time.Second,
	}
	if tt, ok := t.(*testing.T); ok {
		cfg.Log = testr.New(tt)
	}
	if change != nil {
		change(&cfg)
	}
	w.Server = New(cfg)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	w.address = listener.Addr().String()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.Serve(ctx, listener) }()
	w.stop = sync.OnceValue(func() error {
		cancel()
		return <-ended
	})
	t.Cleanup(func() {
		if err := w.stop(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// dial connects with a client certificate, or without one.
func (w *world) dial(t testing.TB, certificate *tls.Certificate) *grpc.ClientConn {
	t.Helper()
	config := &tls.Config{RootCAs: w.ca.pool(), MinVersion: tls.VersionTLS13, InsecureSkipVerify: true}
	if certificate != nil {
		config.Certificates = []tls.Certificate{*certificate}
	}
	conn, err := grpc.NewClient("passthrough:///"+w.address, grpc.WithTransportCredentials(credentials.NewTLS(config)))
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	return conn
}

// An envoy is a proxy whose every word the test chooses.
type envoy struct {
	t         testing.TB
	stream    discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	node      string
	responses chan *discoveryv3.DeltaDiscoveryResponse
	ended     chan error
	cancel    func()
}

func (w *world) connect(t testing.TB, certificate *tls.Certificate, node string) *envoy {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(w.dial(t, certificate)).DeltaAggregatedResources(ctx)
	must(t, err)
	e := &envoy{
		t: t, stream: stream, node: node, cancel: cancel,
		responses: make(chan *discoveryv3.DeltaDiscoveryResponse, 100), ended: make(chan error, 1),
	}
	go func() {
		for {
			r, err := stream.Recv()
			if err != nil {
				e.ended <- err
				return
			}
			e.responses <- r
		}
	}()
	return e
}

// join connects the proxy of a workload with a certificate of its own.
func (w *world) join(t testing.TB, workload mesh.Workload) *envoy {
	t.Helper()
	certificate := w.ca.leaf(t, workload.Identity.URI(trustDomain), workload.ID.UID, time.Hour)
	return w.connect(t, certificate, workload.ID.String())
}

// say sends a request.
func (e *envoy) say(typ xds.Type, change func(*discoveryv3.DeltaDiscoveryRequest)) {
	e.t.Helper()
	r := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: typ.URL()}
	if e.node != "" {
		r.Node, e.node = &corev3.Node{Id: e.node}, "" // in the first one only
	}
	if change != nil {
		change(r)
	}
	// EOF: the server has ended the stream, and end says why.
	if err := e.stream.Send(r); err != nil && !errors.Is(err, io.EOF) {
		e.t.Fatalf("send: %v (%v)", err, <-e.ended)
	}
}

func (e *envoy) subscribe(typ xds.Type, names ...string) {
	e.t.Helper()
	e.say(typ, func(r *discoveryv3.DeltaDiscoveryRequest) { r.ResourceNamesSubscribe = names })
}

func (e *envoy) unsubscribe(typ xds.Type, names ...string) {
	e.t.Helper()
	e.say(typ, func(r *discoveryv3.DeltaDiscoveryRequest) { r.ResourceNamesUnsubscribe = names })
}

// again subscribes as Envoy does on a new stream, naming what it has.
func (e *envoy) again(typ xds.Type, names []string, known map[string]string) {
	e.t.Helper()
	e.say(typ, func(r *discoveryv3.DeltaDiscoveryRequest) {
		r.ResourceNamesSubscribe, r.InitialResourceVersions = names, known
	})
}

func (e *envoy) ack(r *discoveryv3.DeltaDiscoveryResponse) {
	e.t.Helper()
	e.say(typeOf(r), func(q *discoveryv3.DeltaDiscoveryRequest) { q.ResponseNonce = r.GetNonce() })
}

func (e *envoy) nack(r *discoveryv3.DeltaDiscoveryResponse, message string) {
	e.t.Helper()
	e.say(typeOf(r), func(q *discoveryv3.DeltaDiscoveryRequest) {
		q.ResponseNonce = r.GetNonce()
		q.ErrorDetail = &rpcstatus.Status{Code: 13, Message: message}
	})
}

// hear returns the next response.
func (e *envoy) hear() *discoveryv3.DeltaDiscoveryResponse {
	e.t.Helper()
	select {
	case r := <-e.responses:
		return r
	case err := <-e.ended:
		e.t.Fatalf("the stream ended: %v", err)
	case <-time.After(patience):
		e.t.Fatal("no response came")
	}
	return nil
}

// end returns the status with which the stream ends.
func (e *envoy) end() error {
	e.t.Helper()
	select {
	case err := <-e.ended:
		return err
	case <-time.After(patience):
		e.t.Fatal("the stream did not end")
	}
	return nil
}

func typeOf(r *discoveryv3.DeltaDiscoveryResponse) xds.Type {
	for _, t := range xds.Types() {
		if t.URL() == r.GetTypeUrl() {
			return t
		}
	}
	return -1
}

// A said is what a response says, without versions.
type said struct {
	Type        string
	Names, Gone []string
}

func what(r *discoveryv3.DeltaDiscoveryResponse) said {
	s := said{Type: typeOf(r).String(), Gone: r.GetRemovedResources()}
	for _, resource := range r.GetResources() {
		s.Names = append(s.Names, resource.GetName())
	}
	return s
}

// settle subscribes to everything of a Set, acknowledges all, and returns the
// versions that the proxy then has, by type. The proxy must be new.
func (e *envoy) settle(set *xds.Set) map[xds.Type]map[string]string {
	e.t.Helper()
	have := map[xds.Type]map[string]string{}
	for _, typ := range []xds.Type{xds.Cluster, xds.Endpoints, xds.Secret, xds.Listener, xds.Route, xds.Runtime} {
		have[typ] = map[string]string{}
		var names []string
		for r := range set.All(typ) {
			names = append(names, r.Name)
		}
		if typ == xds.Cluster || typ == xds.Listener {
			names = nil
		} else if len(names) == 0 {
			continue
		}
		e.subscribe(typ, names...)
		r := e.hear()
		e.ack(r)
		if typeOf(r) != typ || len(r.GetRemovedResources()) > 0 {
			e.t.Fatalf("settling %s, got %+v", typ, what(r))
		}
		for _, resource := range r.GetResources() {
			have[typ][resource.GetName()] = resource.GetVersion()
		}
	}
	return have
}

// A town is the parts of a mesh that tests change and publish.
type town struct {
	parts mesh.Parts
}

func newTown(ca *testCA) *town {
	return &town{mesh.Parts{
		Settings: mesh.Settings{
			TrustDomain: trustDomain, ClusterDomain: trustDomain, TrustBundle: ca.bundle(),
			ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12")},
		},
		Namespaces: []mesh.Namespace{{Name: "town", Mode: mesh.Permissive, AllowEgress: true}},
	}}
}

// pod adds a workload.
func (w *town) pod(name, serviceAccount string) mesh.Workload {
	workload := mesh.Workload{
		ID:       mesh.ProxyID{Namespace: "town", Pod: name, UID: "uid-" + name},
		Identity: mesh.Identity{Namespace: "town", ServiceAccount: serviceAccount},
	}
	w.parts.Workloads = append(w.parts.Workloads, workload)
	return workload
}

// service adds a HTTP service with one endpoint.
func (w *town) service(name string, n byte) {
	w.parts.Services = append(w.parts.Services, mesh.Service{
		Name:     mesh.PortName{ServiceName: mesh.ServiceName{Namespace: "town", Name: name}, Port: 80},
		Protocol: mesh.HTTP, InMesh: true,
		Addresses:  []netip.Addr{netip.AddrFrom4([4]byte{10, 96, 1, n})},
		Identities: []mesh.Identity{{Namespace: "town", ServiceAccount: name}},
		Endpoints: []mesh.Endpoint{{
			Address: netip.AddrFrom4([4]byte{10, 1, 1, n}), Port: 8080, Identity: mesh.Identity{Namespace: "town", ServiceAccount: name},
		}},
	})
}

func (w *town) snapshot(t testing.TB) *mesh.Snapshot {
	t.Helper()
	snap, err := mesh.NewSnapshot(w.parts)
	must(t, err)
	return snap
}

// publish publishes, and returns the Set of a workload.
func (w *world) publish(t testing.TB, town *town, of mesh.Workload) *xds.Set {
	t.Helper()
	snap := town.snapshot(t)
	must(t, w.Publish(t.Context(), snap))
	view, ok := snap.View(of.ID)
	if !ok {
		return nil
	}
	set, err := w.cache.Set(view)
	must(t, err)
	return set
}

// eventually waits for a condition that somebody else brings about.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not so: %s", what)
		}
		<-tick.C
	}
}

var _ Signer = signerFunc(nil)

var _ signing.CertificatesServer = (*Server)(nil)

// value returns what a counter or gauge stands at.
func value(t testing.TB, of prometheus.Metric) float64 {
	t.Helper()
	var m dto.Metric
	must(t, of.Write(&m))
	return m.GetCounter().GetValue() + m.GetGauge().GetValue()
}
