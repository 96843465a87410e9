package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"sigs.k8s.io/yaml"

	"github.com/outrigger-mesh/outrigger/bootstrap"
	"github.com/outrigger-mesh/outrigger/e2e/envoybin"
	"github.com/outrigger-mesh/outrigger/internal/signing"
)

const (
	controlPlaneID = "spiffe://cluster.local/ns/outrigger-system/sa/outriggerd"
	workloadID     = "spiffe://cluster.local/ns/bookstore/sa/store"
	// asAgent in the environment makes the test binary the agent itself.
	asAgent = "OUTRIGGER_TEST_AS_AGENT"
	// patience bounds every wait. It is no assertion about speed.
	patience = 30 * time.Second
)

func TestMain(m *testing.M) {
	if os.Getenv(asAgent) != "" {
		main()
	}
	os.Exit(m.Run())
}

// A world is one workload and its control plane: a real certificate authority and
// a delta ADS server on one port, and an application behind the real Envoy.
type world struct {
	t     *testing.T
	dir   string
	ip    string // where Envoy, for HTTP, and the agent listen; each world has its own
	tcpIP string // where Envoy listens for TCP
	root  authority

	mu       sync.Mutex
	id       string // what the control plane's certificate says
	token    string // what it accepts
	lifetime time.Duration
	asked    int      // calls of Sign
	nodes    []string // ids of nodes that opened a stream, with their certificate
	address  string
	app      string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	// Unix sockets have short names, and t.TempDir does not.
	dir, err := os.MkdirTemp("", "agent")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	n, pid := worlds.next(), os.Getpid()
	w := &world{
		t: t, dir: dir, root: newAuthority(t),
		ip: fmt.Sprintf("127.%d.%d.%d", 64+n, pid>>8&255, pid&255), tcpIP: fmt.Sprintf("127.%d.%d.%d", 128+n, pid>>8&255, pid&255),
		id: controlPlaneID, token: "one", lifetime: time.Hour,
	}
	w.write("token", "one\n")
	w.write("ca.crt", string(w.root.pem()))
	// Reserve the control plane's address without serving there yet.
	w.address = freeAddress(t)
	return w
}

// worlds counts them, so that two that run at once differ.
var worlds counter

type counter struct {
	mu sync.Mutex
	n  int
}

func (c *counter) next() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n++
	return c.n
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func (w *world) write(name, content string) {
	w.t.Helper()
	if err := os.WriteFile(filepath.Join(w.dir, name), []byte(content), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// serve starts the control plane; stop ends it with all streams.
func (w *world) serve() (stop func()) {
	w.t.Helper()
	l, err := net.Listen("tcp", w.address)
	if err != nil {
		w.t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(w.root.certificate)
	leaf := w.root.issue(w.t, w.id)
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{leaf},
		ClientCAs:    pool,
		ClientAuth:   tls.VerifyClientCertIfGiven,
	})))
	signing.RegisterCertificatesServer(server, signer{world: w})
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(server, &ads{world: w})
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := server.Serve(l); err != nil {
			w.t.Errorf("control plane: %v", err)
		}
	}()
	var once sync.Once
	stop = func() { once.Do(func() { server.Stop(); <-done }) }
	w.t.Cleanup(stop)
	return stop
}

// A signer is the certificate authority of a world.
type signer struct {
	signing.UnimplementedCertificatesServer
	*world
}

func (s signer) Sign(ctx context.Context, r *signing.SignRequest) (*signing.SignResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	md, _ := metadata.FromIncomingContext(ctx)
	if got := md.Get("authorization"); len(got) != 1 || got[0] != "Bearer "+s.token {
		return nil, status.Error(codes.Unauthenticated, "token not accepted")
	}
	csr, err := x509.ParseCertificateRequest(r.GetCsr())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if len(csr.URIs) != 1 || csr.URIs[0].String() != workloadID || len(csr.DNSNames) != 1 || csr.DNSNames[0] != "store.bookstore.cluster.local" {
		return nil, status.Errorf(codes.PermissionDenied, "names %v %v", csr.URIs, csr.DNSNames)
	}
	der, err := s.root.sign(csr.PublicKey, &x509.Certificate{
		Subject: pkix.Name{SerialNumber: csr.Subject.SerialNumber}, URIs: csr.URIs, DNSNames: csr.DNSNames,
		NotAfter: time.Now().Add(s.lifetime),
	})
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return &signing.SignResponse{Chain: [][]byte{der}, Roots: [][]byte{s.root.certificate.Raw}}, nil
}

// An ads sends every proxy the same: a listener for HTTP and one for TCP on the
// inbound port, both leading to the application.
type ads struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	*world
}

const resources = `
clusters:
- name: app
  type: STATIC
  load_assignment:
    cluster_name: app
    endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: APPPORT}}}}]}]
listeners:
- name: inbound
  traffic_direction: INBOUND
  address: {socket_address: {address: LISTEN, port_value: 15003}}
  filter_chains:
  - filters:
    - name: http
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
        stat_prefix: inbound
        route_config: {virtual_hosts: [{name: app, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: app, timeout: 0s}}]}]}
        http_filters: [{name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]
- name: inbound-tcp
  traffic_direction: INBOUND
  address: {socket_address: {address: TCPONLY, port_value: 15003}}
  filter_chains:
  - filters:
    - name: tcp
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
        stat_prefix: inbound
        cluster: app
`

// decode returns the resources of one kind.
func (w *world) decode(kind string, message func() proto.Message, name func(proto.Message) string) ([]*discoveryv3.Resource, error) {
	_, port, err := net.SplitHostPort(w.app)
	if err != nil {
		return nil, err
	}
	text := strings.NewReplacer("LISTEN", w.ip, "TCPONLY", w.tcpIP, "APPPORT", port).Replace(resources)
	var all map[string][]any
	if err := yaml.Unmarshal([]byte(text), &all); err != nil {
		return nil, err
	}
	var list []*discoveryv3.Resource
	for _, one := range all[kind] {
		text, err := json.Marshal(one)
		if err != nil {
			return nil, err
		}
		m := message()
		if err := protojson.Unmarshal(text, m); err != nil {
			return nil, err
		}
		packed, err := anypb.New(m)
		if err != nil {
			return nil, err
		}
		list = append(list, &discoveryv3.Resource{Name: name(m), Version: "1", Resource: packed})
	}
	return list, nil
}

func (a *ads) DeltaAggregatedResources(stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	p, _ := peer.FromContext(stream.Context())
	state := p.AuthInfo.(credentials.TLSInfo).State
	if len(state.VerifiedChains) == 0 {
		return status.Error(codes.Unauthenticated, "no certificate")
	}
	leaf := state.VerifiedChains[0][0]
	clusters, err1 := a.decode("clusters", func() proto.Message { return &clusterv3.Cluster{} }, func(m proto.Message) string { return m.(*clusterv3.Cluster).GetName() })
	listeners, err2 := a.decode("listeners", func() proto.Message { return &listenerv3.Listener{} }, func(m proto.Message) string { return m.(*listenerv3.Listener).GetName() })
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	sent := map[string]bool{}
	for {
		r, err := stream.Recv()
		if err != nil {
			return nil //nolint:nilerr // the proxy has gone
		}
		if detail := r.GetErrorDetail(); detail != nil {
			a.t.Errorf("Envoy refuses: %s", detail.GetMessage())
		}
		if id := r.GetNode().GetId(); id != "" {
			a.mu.Lock()
			a.nodes = append(a.nodes, fmt.Sprintf("%s %s %s", id, leaf.URIs[0], leaf.Subject.SerialNumber))
			a.mu.Unlock()
		}
		if sent[r.GetTypeUrl()] {
			continue
		}
		sent[r.GetTypeUrl()] = true
		response := &discoveryv3.DeltaDiscoveryResponse{TypeUrl: r.GetTypeUrl(), Nonce: "1", SystemVersionInfo: "1"}
		switch {
		case strings.HasSuffix(r.GetTypeUrl(), ".Cluster"):
			response.Resources = clusters
		case strings.HasSuffix(r.GetTypeUrl(), ".Listener"):
			response.Resources = listeners
		}
		if err := stream.Send(response); err != nil {
			return err
		}
	}
}

// An authority is a root.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return authority{certificate, key}
}

func (a authority) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.certificate.Raw})
}

func (a authority) sign(key any, template *x509.Certificate) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial
	template.NotBefore = time.Now().Add(-5 * time.Minute)
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	return x509.CreateCertificate(rand.Reader, template, a.certificate, key, a.key)
}

func (a authority) issue(t *testing.T, id string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	uri, err := url.Parse(id)
	if err != nil {
		t.Fatal(err)
	}
	der, err := a.sign(key.Public(), &x509.Certificate{URIs: []*url.URL{uri}, NotAfter: time.Now().Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// A sidecar is a running agent.
type sidecar struct {
	*world
	command *exec.Cmd
	log     *buffer
	exited  chan struct{}
}

// A buffer is a log that is read while it is written.
type buffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// start runs the agent as a process of its own, with the real Envoy.
func (w *world) start(binary string, change func(*bootstrap.Settings)) *sidecar {
	w.t.Helper()
	envoy, err := envoybin.EnvoyBinary(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	settings := bootstrap.Settings{
		Mesh: "outrigger", TrustDomain: "cluster.local", ControlPlane: w.address, ControlPlaneID: controlPlaneID,
		LogLevel: "info", MemoryLimit: 256 << 20,
	}
	if change != nil {
		change(&settings)
	}
	text, err := json.Marshal(settings)
	if err != nil {
		w.t.Fatal(err)
	}
	s := &sidecar{world: w, log: &buffer{}, exited: make(chan struct{})}
	s.command = w.commandOf(binary, "-envoy", envoy, "-address", w.ip+":15020", "proxy", string(text))
	s.command.Stderr = s.log
	s.command.Stdout = s.log
	if err := s.command.Start(); err != nil {
		w.t.Fatal(err)
	}
	go func() {
		defer close(s.exited)
		_ = s.command.Wait()
	}()
	w.t.Cleanup(func() {
		_ = s.command.Process.Signal(os.Interrupt)
		<-s.exited
		if w.t.Failed() {
			w.t.Logf("the sidecar's log:\n%s", s.log)
		}
	})
	return s
}

// commandOf makes a command of the agent; binary is empty for this test's own.
func (w *world) commandOf(binary string, args ...string) *exec.Cmd {
	w.t.Helper()
	if binary == "" {
		var err error
		if binary, err = os.Executable(); err != nil {
			w.t.Fatal(err)
		}
	}
	flags := []string{"-state", w.dir + "/state", "-token", w.dir + "/token", "-trust", w.dir + "/ca.crt"}
	command := exec.Command(binary, append(flags, args...)...)
	command.Env = []string{
		asAgent + "=1",
		bootstrap.EnvPodNamespace + "=bookstore", bootstrap.EnvPodName + "=store-1", bootstrap.EnvPodUID + "=u-1",
		bootstrap.EnvServiceAccount + "=store", bootstrap.EnvPodIPs + "=127.0.0.1",
	}
	return command
}

// get asks the agent, or Envoy's inbound side where port is 15003.
func (w *world) get(port int, path string) (int, string, error) {
	request, err := http.NewRequestWithContext(w.t.Context(), http.MethodGet, fmt.Sprintf("http://%s:%d%s", w.ip, port, path), nil)
	if err != nil {
		return 0, "", err
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	response, err := client.Do(request)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	return response.StatusCode, strings.TrimSpace(string(text)), err
}

// ready waits until the sidecar says so.
func (s *sidecar) ready() {
	s.t.Helper()
	s.eventually("the sidecar is ready", func() error {
		if code, text, err := s.get(15020, "/ready"); err != nil || code != http.StatusOK {
			return fmt.Errorf("%d %s %w", code, text, err)
		}
		return nil
	})
}

// logs waits for a line.
func (s *sidecar) logs(text string) {
	s.t.Helper()
	s.eventually("the log has "+text, func() error {
		if !strings.Contains(s.log.String(), text) {
			return errors.New("it has not")
		}
		return nil
	})
}

// exit waits for the end and returns the status.
func (s *sidecar) exit() int {
	s.t.Helper()
	select {
	case <-s.exited:
		return s.command.ProcessState.ExitCode()
	case <-time.After(patience):
		s.t.Fatal("the sidecar did not end")
		return 0
	}
}

// eventually waits for a condition.
func (w *world) eventually(what string, condition func() error) {
	w.t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := condition()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			w.t.Fatalf("waited for: %s: %v", what, err)
		}
	}
}
