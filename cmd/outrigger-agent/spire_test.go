//go:build integration

package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/outrigger-mesh/outrigger/bootstrap"
	"github.com/outrigger-mesh/outrigger/e2e/cluster/local"
)

// TestCertificateFromSPIRE has the certificates of a real SPIRE, whose CA is below an
// intermediate of the mesh's root: the identity of somebody else, the pod's own, its
// renewals, and an agent of SPIRE's that is killed and started again. A request that
// began with the first certificate gets its answer after all of that.
func TestCertificateFromSPIRE(t *testing.T) {
	w := newWorld(t)
	home := domain{"cluster.local", w.root}
	release := w.serveApp()
	w.serve()
	spire := w.startSPIRE(home, "api.sock")
	s := w.borrow(bootstrap.Identity{WorkloadAPI: "api.sock"})
	s.logs("no identity issued")
	w.register(spire, "spiffe://cluster.local/ns/bookstore/sa/thief", time.Hour)
	s.logs("the Workload API has certificates for [spiffe://cluster.local/ns/bookstore/sa/thief]; want one for " + workloadID)
	if code, text, err := s.get(15020, "/ready"); code != http.StatusServiceUnavailable {
		t.Errorf("with a certificate for somebody else: got %d %q %v; want 503", code, text, err)
	}

	w.register(spire, workloadID, 30*time.Second)
	s.ready()
	caller := w.root.issue(t, "spiffe://cluster.local/ns/bookstore/sa/caller")
	held := s.call(caller)
	first := held.wantSPIRE(home)
	s.wantBorrowed(first)
	held.ask("/slow")

	second := s.renewed(home, caller, first)
	s.wantBorrowed(second)

	const away = "the Workload API does not answer"
	before := strings.Count(s.log.String(), away)
	spire.StopAgent()
	s.eventually("the sidecar's agent noticed", func() error {
		if strings.Count(s.log.String(), away) == before {
			return errors.New("it has not")
		}
		return nil
	})
	s.ready()
	if err := spire.StartAgent(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.wantBorrowed(s.renewed(home, caller, second))

	close(release)
	held.wantAnswer()
	held.ask("/")
	held.wantAnswer()
}

// TestSPIREMovesToAnotherRoot has a real SPIRE whose next CA is below another root, as
// the mesh's, in the step of a rotation in which that signs.
func TestSPIREMovesToAnotherRoot(t *testing.T) {
	w := newWorld(t)
	w.serveApp()
	old, next := domain{"cluster.local", w.root}, domain{"cluster.local", newAuthority(t)}
	w.trustToo(next.authority)
	both := []domain{old, next}
	w.goOn(change{signs: old, serves: old, trusted: both, name: "first"})
	stop := w.serve()
	spire := w.startSPIRE(old, "api.sock")
	s := w.borrow(bootstrap.Identity{WorkloadAPI: "api.sock"})
	w.register(spire, workloadID, 40*time.Second) // SPIRE renews at half of that
	s.ready()
	caller := w.root.issue(t, "spiffe://cluster.local/ns/bookstore/sa/caller")
	first := s.call(caller).wantSPIRE(old)

	w.goOn(change{signs: next, serves: old, trusted: both, name: "second"})
	above, key := next.authority.above(t)
	if err := spire.MoveBelow(t.Context(), above, key, next.authority.pem()); err != nil {
		t.Fatal(err)
	}
	s.renewed(next, caller, first)
	w.goOn(change{signs: next, serves: next, trusted: []domain{next}, name: "second"})
	s.wantShown(workloadID, stop)
	s.wantUndisturbed()
}

// TestAnotherSPIREBehindTheSocket has agents of two real SPIREs, of the old trust domain
// and of the new one, after each other at the same socket.
func TestAnotherSPIREBehindTheSocket(t *testing.T) {
	w := newWorld(t)
	w.serveApp()
	old, next := w.domains()
	w.goOn(change{signs: old, serves: old, trusted: []domain{old, next}})
	stop := w.serve()
	spire := w.startSPIRE(old, "api.sock")
	w.register(w.startSPIRE(next, "next.sock"), newWorkloadID, time.Hour)
	s := w.borrow(bootstrap.Identity{WorkloadAPI: "api.sock"})
	w.register(spire, workloadID, 100*time.Second)
	s.ready()
	caller := w.root.issue(t, "spiffe://cluster.local/ns/bookstore/sa/caller")
	first := s.call(caller).wantSPIRE(old)

	w.goOn(change{signs: next, serves: old, trusted: []domain{old, next}})
	if err := os.Rename(w.socket("next.sock"), w.socket("api.sock")); err != nil {
		t.Fatal(err)
	}
	spire.StopAgent()
	s.renewed(next, caller, first)
	w.goOn(change{signs: next, serves: next, trusted: []domain{next}})
	s.wantShown(newWorkloadID, stop)
	s.wantUndisturbed()
}

// above returns an authority below a, and its key, PEM.
func (a authority) above(t *testing.T) (certificate, key []byte) {
	t.Helper()
	below := a.intermediate(t)
	der, err := x509.MarshalPKCS8PrivateKey(below.key)
	if err != nil {
		t.Fatal(err)
	}
	return below.pem(), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// socket is the path of a socket in the sidecar's volume.
func (w *world) socket(name string) string { return filepath.Join(w.dir, "identity", name) }

// startSPIRE starts SPIRE for a trust domain, below its authority, with its Workload API
// at a socket in the sidecar's volume.
func (w *world) startSPIRE(of domain, socket string) *local.SPIRE {
	w.t.Helper()
	above, key := of.authority.above(w.t)
	spire, err := local.StartSPIRE(w.t.Context(), local.SPIREConfig{
		Folder: filepath.Join(w.dir, "spire-"+of.domain), Socket: w.socket(socket), TrustDomain: of.domain,
		Authority: above, Key: key, Root: of.authority.pem(),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		spire.Stop()
		if w.t.Failed() {
			for _, file := range []string{spire.ServerLog, spire.AgentLog} {
				text, err := os.ReadFile(file)
				w.t.Logf("%s: %v\n%s", file, err, text)
			}
		}
	})
	return spire
}

// register has SPIRE give the sidecar an identity.
func (w *world) register(spire *local.SPIRE, id string, lifetime time.Duration) {
	w.t.Helper()
	if err := spire.Register(w.t.Context(), id, os.Getuid(), lifetime); err != nil {
		w.t.Fatal(err)
	}
}

// A held is a caller's connection with mutual TLS to Envoy.
type held struct {
	*sidecar
	conn   *tls.Conn
	answer *bufio.Reader
}

// call connects, until the test ends.
func (s *sidecar) call(caller tls.Certificate) *held {
	s.t.Helper()
	h, err := s.dial(caller)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { h.conn.Close() })
	return h
}

// dial connects. The connection is the caller's to close.
func (s *sidecar) dial(caller tls.Certificate) (*held, error) {
	dialer := tls.Dialer{Config: &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{caller},
		InsecureSkipVerify: true, // SPIFFE's names are no host names; wantSPIRE looks
	}}
	conn, err := dialer.DialContext(s.t.Context(), "tcp", s.ip+":15443")
	if err != nil {
		return nil, err
	}
	return &held{sidecar: s, conn: conn.(*tls.Conn), answer: bufio.NewReader(conn)}, nil
}

// wantSPIRE checks that Envoy has shown a certificate of the workload's which SPIRE
// made, and returns it.
func (h *held) wantSPIRE(of domain) tls.Certificate {
	h.t.Helper()
	shown := h.conn.ConnectionState().PeerCertificates
	roots, above := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(of.authority.certificate)
	var certificate tls.Certificate
	for _, c := range shown {
		above.AddCert(c)
		certificate.Certificate = append(certificate.Certificate, c.Raw)
	}
	if _, err := shown[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: above}); err != nil {
		h.t.Errorf("verify what Envoy shows: %v", err)
	}
	id := "spiffe://" + of.domain + "/ns/bookstore/sa/store"
	if len(shown) != 3 || len(shown[0].URIs) != 1 || shown[0].URIs[0].String() != id || !slices.Equal(shown[0].Subject.Organization, []string{"SPIRE"}) {
		h.t.Errorf("Envoy shows %d certificates, the first for %v with the subject %s; want 3, of SPIRE and for %s", len(shown), shown[0].URIs, shown[0].Subject, id)
	}
	return certificate
}

// renewed waits until Envoy shows another certificate than before to new
// connections, which is to be of a trust domain, and returns it.
func (s *sidecar) renewed(of domain, caller, before tls.Certificate) (now tls.Certificate) {
	s.t.Helper()
	s.poll(200*time.Millisecond, "Envoy shows another certificate", func() error {
		h, err := s.dial(caller)
		if err != nil {
			return err
		}
		defer h.conn.Close()
		if bytes.Equal(h.conn.ConnectionState().PeerCertificates[0].Raw, before.Certificate[0]) {
			return errors.New("it shows the one of before")
		}
		now = h.wantSPIRE(of)
		return nil
	})
	return now
}

// ask sends a request over the connection.
func (h *held) ask(path string) {
	h.t.Helper()
	if _, err := fmt.Fprintf(h.conn, "GET %s HTTP/1.1\r\nHost: store\r\n\r\n", path); err != nil {
		h.t.Fatal(err)
	}
}

// wantAnswer waits for the application's answer to the request.
func (h *held) wantAnswer() {
	h.t.Helper()
	if err := h.conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		h.t.Fatal(err)
	}
	response, err := http.ReadResponse(h.answer, nil)
	if err != nil {
		h.t.Fatalf("over the connection from before: %v", err)
	}
	defer response.Body.Close()
	if text, err := io.ReadAll(response.Body); err != nil || response.StatusCode != http.StatusOK || string(text) != "hello" {
		h.t.Errorf("over the connection from before: got %d %q %v; want the application's answer", response.StatusCode, text, err)
	}
}
