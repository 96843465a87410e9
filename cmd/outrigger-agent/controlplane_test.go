package main

import (
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
	"math/big"
	"net"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	runtimev3 "github.com/envoyproxy/go-control-plane/envoy/service/runtime/v3"
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
	"github.com/outrigger-mesh/outrigger/internal/signing"
)

// serve starts the control plane; stop ends it with all streams.
func (w *world) serve() (stop func()) {
	w.t.Helper()
	l, err := net.Listen("tcp", w.address)
	if err != nil {
		w.t.Fatal(err)
	}
	leaf := w.serving()
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			return &tls.Config{
				MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"},
				Certificates: []tls.Certificate{leaf}, ClientCAs: w.clientRoots(), ClientAuth: tls.VerifyClientCertIfGiven,
			}, nil
		},
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

// clientRoots are those that clients' certificates may lead to.
func (w *world) clientRoots() *x509.CertPool {
	w.mu.Lock()
	defer w.mu.Unlock()
	pool := x509.NewCertPool()
	pool.AddCert(w.root.certificate)
	for _, root := range w.also {
		pool.AddCert(root)
	}
	return pool
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
	root, domain := s.root, "cluster.local"
	response := &signing.SignResponse{Roots: [][]byte{root.certificate.Raw}}
	if c := s.change; c != nil {
		root, domain = c.signs.authority, c.signs.domain
		response = &signing.SignResponse{Authority: c.message(), Trusted: c.messages()}
	}
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
	if len(csr.URIs) != 1 || csr.URIs[0].String() != "spiffe://"+domain+"/ns/bookstore/sa/store" || len(csr.DNSNames) != 1 || csr.DNSNames[0] != "store.bookstore."+domain {
		return nil, status.Errorf(codes.PermissionDenied, "names %v %v", csr.URIs, csr.DNSNames)
	}
	leaf := &x509.Certificate{
		Subject: pkix.Name{SerialNumber: csr.Subject.SerialNumber}, URIs: csr.URIs, DNSNames: csr.DNSNames,
		NotAfter: time.Now().Add(s.lifetime),
	}
	if s.tamper != nil {
		s.tamper(csr, leaf, response)
	}
	if len(response.GetChain()) > 0 {
		return response, nil
	}
	der, err := root.sign(csr.PublicKey, leaf)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	response.Chain = [][]byte{der}
	return response, nil
}

// An ads sends every proxy the same: a listener for HTTP and one for TCP on the
// inbound port, and one for HTTP with mutual TLS, all leading to the application.
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
- name: inbound-tls
  traffic_direction: INBOUND
  address: {socket_address: {address: LISTEN, port_value: 15443}}
  filter_chains:
  - transport_socket:
      name: tls
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
        require_client_certificate: true
        common_tls_context:
          tls_certificate_sds_secret_configs:
          - {name: CERTIFICATE, sds_config: {resource_api_version: V3, path_config_source: {path: SECRETS/certificate.yaml, watched_directory: {path: SECRETS}}}}
          validation_context_sds_secret_config: {name: TRUST, sds_config: {resource_api_version: V3, path_config_source: {path: SECRETS/trust.yaml, watched_directory: {path: SECRETS}}}}
    filters:
    - name: http
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
        stat_prefix: inbound
        route_config: {virtual_hosts: [{name: app, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: app, timeout: 0s}}]}]}
        http_filters: [{name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]
`

// decode returns the resources of one kind: none where there is no application.
func (w *world) decode(kind string, message func() proto.Message, name func(proto.Message) string) ([]*discoveryv3.Resource, error) {
	if w.app == "" {
		return nil, nil
	}
	_, port, err := net.SplitHostPort(w.app)
	if err != nil {
		return nil, err
	}
	text := strings.NewReplacer("LISTEN", w.ip, "TCPONLY", w.tcpIP, "APPPORT", port, "SECRETS", w.dir+"/state/sds",
		"CERTIFICATE", bootstrap.CertificateName, "TRUST", bootstrap.TrustName).Replace(resources)
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
	runtime, err3 := anypb.New(&runtimev3.Runtime{Name: bootstrap.RuntimeName})
	if err := errors.Join(err1, err2, err3); err != nil {
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
		case strings.HasSuffix(r.GetTypeUrl(), ".Runtime"):
			// Always there, because Envoy waits for it before it asks for anything else.
			response.Resources = []*discoveryv3.Resource{{Name: bootstrap.RuntimeName, Version: "1", Resource: runtime}}
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
	return a.issueFor(t, id, time.Hour)
}

func (a authority) issueFor(t *testing.T, id string, life time.Duration) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	uri, err := url.Parse(id)
	if err != nil {
		t.Fatal(err)
	}
	der, err := a.sign(key.Public(), &x509.Certificate{URIs: []*url.URL{uri}, NotAfter: time.Now().Add(life)})
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
