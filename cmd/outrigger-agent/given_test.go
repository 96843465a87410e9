package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/outrigger-mesh/outrigger/bootstrap"
)

// mountFiles replaces what is mounted for the pod as the kubelet and CSI drivers
// do it: the files are links through one that is renamed.
func (w *world) mountFiles(certificate tls.Certificate) {
	w.t.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(certificate.PrivateKey)
	if err != nil {
		w.t.Fatal(err)
	}
	dir := filepath.Join(w.dir, "identity")
	version := fmt.Sprintf("..%d", time.Now().UnixNano())
	if err := os.MkdirAll(filepath.Join(dir, version), 0o755); err != nil {
		w.t.Fatal(err)
	}
	w.write("identity/"+version+"/tls.crt", string(encodeChain(certificate)))
	w.write("identity/"+version+"/tls.key", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})))
	if err := os.Symlink(version, filepath.Join(dir, "..new")); err != nil {
		w.t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(dir, "..new"), filepath.Join(dir, "..data")); err != nil {
		w.t.Fatal(err)
	}
	for _, name := range []string{"tls.crt", "tls.key"} {
		if err := os.Symlink("..data/"+name, filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrExist) {
			w.t.Fatal(err)
		}
	}
}

func encodeChain(certificate tls.Certificate) []byte {
	var text []byte
	for _, der := range certificate.Certificate {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return text
}

// borrow starts an agent that has its certificate from elsewhere.
func (w *world) borrow(identity bootstrap.Identity) *sidecar {
	return w.start("", func(s *bootstrap.Settings) { s.Identity = &identity })
}

// wantBorrowed checks that Envoy works with a certificate that outriggerd was not
// asked for.
func (s *sidecar) wantBorrowed(certificate tls.Certificate) {
	s.t.Helper()
	s.wantCertificate(certificate)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.asked != 0 {
		s.t.Errorf("outriggerd was asked for %d certificates", s.asked)
	}
	if want := "bookstore/store-1/u-1 " + workloadID + " "; len(s.nodes) == 0 || s.nodes[0] != want {
		s.t.Errorf("the stream was opened by %q; want %q", s.nodes, want)
	}
}

// wantCertificate checks that Envoy works with a certificate.
func (s *sidecar) wantCertificate(certificate tls.Certificate) {
	s.t.Helper()
	s.ready()
	leaf, err := x509.ParseCertificate(certificate.Certificate[0])
	if err != nil {
		s.t.Fatal(err)
	}
	s.eventually("Envoy has the certificate", func() error {
		if now := s.serials(); !slices.Contains(now, hex.EncodeToString(leaf.SerialNumber.Bytes())) {
			return fmt.Errorf("it has %q, want %x", now, leaf.SerialNumber)
		}
		return nil
	})
	if code, text, err := s.get(15003, "/"); code != http.StatusOK || text != "hello" {
		s.t.Errorf("through Envoy: got %d %q %v; want the application's answer", code, text, err)
	}
}

// TestCertificateFromFiles has files as csi-driver-spiffe mounts them.
func TestCertificateFromFiles(t *testing.T) {
	w := newWorld(t)
	w.serveApp()
	w.serve()
	s := w.borrow(bootstrap.Identity{})
	s.logs("tls.crt: no such file")
	if code, text, err := s.get(15020, "/ready"); code != http.StatusServiceUnavailable {
		t.Errorf("without files: got %d %q %v; want 503", code, text, err)
	}
	w.mountFiles(w.root.issue(t, "spiffe://cluster.local/ns/bookstore/sa/thief"))
	s.logs("want exactly " + workloadID)
	w.mountFiles(w.root.issue(t, "spiffe://example.org/ns/bookstore/sa/store"))
	s.logs("[spiffe://example.org/ns/bookstore/sa/store]")

	// The issuer's root becomes one of the mesh's after its first certificate.
	other := newAuthority(t)
	certificate := other.issue(t, workloadID)
	w.mountFiles(certificate)
	s.logs("verify the certificate up to the mesh's roots")
	w.write("ca.crt", string(w.root.pem())+string(other.pem()))
	w.trustToo(other)
	s.wantBorrowed(certificate)

	renewed := other.issue(t, workloadID)
	w.mountFiles(renewed)
	s.wantBorrowed(renewed)

	// What cannot be used changes nothing.
	w.mountFiles(w.root.issue(t, "spiffe://cluster.local/ns/bookstore/sa/another"))
	s.logs("sa/another]")
	s.wantBorrowed(renewed)
}

// trustToo has the control plane of a world trust another root too.
func (w *world) trustToo(other authority) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.also = append(w.also, other.certificate)
}

// A workloadAPI is a SPIFFE Workload API that says what the test wants.
type workloadAPI struct {
	workload.UnimplementedSpiffeWorkloadAPIServer

	mu      sync.Mutex
	answer  *workload.X509SVIDResponse
	changed chan struct{}
}

// say has the API give these certificates from now on.
func (a *workloadAPI) say(t *testing.T, certificates ...tls.Certificate) {
	t.Helper()
	answer := &workload.X509SVIDResponse{}
	for _, c := range certificates {
		leaf, err := x509.ParseCertificate(c.Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		key, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
		if err != nil {
			t.Fatal(err)
		}
		answer.Svids = append(answer.Svids, &workload.X509SVID{
			SpiffeId: leaf.URIs[0].String(), X509Svid: slices.Concat(c.Certificate...), X509SvidKey: key,
		})
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.answer = answer
	close(a.changed)
	a.changed = make(chan struct{})
}

// FetchX509SVID answers at once and with each change.
func (a *workloadAPI) FetchX509SVID(_ *workload.X509SVIDRequest, stream grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
	if got := metadata.ValueFromIncomingContext(stream.Context(), "workload.spiffe.io"); len(got) != 1 || got[0] != "true" {
		return status.Error(codes.InvalidArgument, "security header missing")
	}
	for {
		a.mu.Lock()
		answer, changed := a.answer, a.changed
		a.mu.Unlock()
		if err := stream.Send(answer); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-stream.Context().Done():
			return nil
		}
	}
}

// serve listens at a socket until stop or the end of the test.
func (a *workloadAPI) serve(t *testing.T, socket string) (stop func()) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	workload.RegisterSpiffeWorkloadAPIServer(server, a)
	go func() { _ = server.Serve(l) }()
	stop = sync.OnceFunc(server.Stop)
	t.Cleanup(stop)
	return stop
}

// TestCertificateFromWorkloadAPI has an API as SPIRE's agent is one, which knows
// several identities of the workload, gives them below an intermediate, renews
// them, and restarts.
func TestCertificateFromWorkloadAPI(t *testing.T) {
	w := newWorld(t)
	w.serveApp()
	w.serve()
	socket := filepath.Join(w.dir, "identity", "api.sock")
	s := w.borrow(bootstrap.Identity{WorkloadAPI: "api.sock"})
	s.logs("the Workload API does not answer")

	api := &workloadAPI{changed: make(chan struct{})}
	other := w.root.issue(t, "spiffe://cluster.local/ns/bookstore/sa/thief")
	api.say(t, other)
	stop := api.serve(t, socket)
	s.logs("the Workload API has certificates for [spiffe://cluster.local/ns/bookstore/sa/thief]; want one for " + workloadID)

	below := w.root.intermediate(t)
	first := below.issue(t, workloadID)
	first.Certificate = append(first.Certificate, below.certificate.Raw)
	api.say(t, other, first)
	s.wantBorrowed(first)

	second := w.root.issue(t, workloadID)
	api.say(t, second)
	s.wantBorrowed(second)

	stop()
	s.logs("the Workload API does not answer")
	s.wantBorrowed(second)
	third := w.root.issue(t, workloadID)
	api.say(t, third)
	api.serve(t, socket)
	s.wantBorrowed(third)
}

// intermediate returns an authority below a.
func (a authority) intermediate(t *testing.T) authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	// SPIRE's have the trust domain as their own name.
	name := &url.URL{Scheme: "spiffe", Host: "cluster.local"}
	template := &x509.Certificate{
		SerialNumber: a.certificate.SerialNumber, URIs: []*url.URL{name}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return authority{certificate, key}
}
