package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/outrigger-mesh/outrigger/bootstrap"
	"github.com/outrigger-mesh/outrigger/internal/signing"
)

// A domain is a trust domain and its authority.
type domain struct {
	domain    string
	authority authority
}

// A change is how far a control plane has come from one trust domain to another.
type change struct {
	signs, serves domain
	trusted       []domain // one that is there twice has several roots
	name          string   // of the authority that signs; empty for that of its trust domain
}

func (c *change) message() *signing.Authority {
	return &signing.Authority{Name: cmp.Or(c.name, c.signs.domain), TrustDomain: c.signs.domain}
}

func (c *change) messages() []*signing.TrustDomain {
	var out []*signing.TrustDomain
	for _, d := range c.trusted {
		if n := len(out); n > 0 && out[n-1].GetName() == d.domain {
			out[n-1].Roots = append(out[n-1].Roots, d.authority.certificate.Raw)
			continue
		}
		out = append(out, &signing.TrustDomain{Name: d.domain, Roots: [][]byte{d.authority.certificate.Raw}})
	}
	return out
}

// Current tells how far the change has come. A control plane without one does not
// know the question, as those of before.
func (s signer) Current(ctx context.Context, r *signing.CurrentRequest) (*signing.CurrentResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.change == nil {
		return s.UnimplementedCertificatesServer.Current(ctx, r)
	}
	if md, _ := metadata.FromIncomingContext(ctx); len(md.Get("authorization")) > 0 {
		return nil, status.Error(codes.InvalidArgument, "a token came with a question that needs none")
	}
	return &signing.CurrentResponse{Authority: s.change.message(), Trusted: s.change.messages()}, nil
}

// serving is the certificate of the control plane.
func (w *world) serving() tls.Certificate {
	w.mu.Lock()
	defer w.mu.Unlock()
	if c := w.change; c != nil {
		return c.serves.authority.issue(w.t, "spiffe://"+c.serves.domain+"/ns/outrigger-system/sa/outriggerd")
	}
	return w.root.issue(w.t, w.id)
}

func (w *world) goOn(to change) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.change = &to
}

// wantStream waits until the last stream was opened by the workload's name in a trust
// domain.
func (s *sidecar) wantStream(domain string) {
	s.t.Helper()
	s.eventually("Envoy's stream is of "+domain, func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if len(s.nodes) == 0 || !strings.Contains(s.nodes[len(s.nodes)-1], "spiffe://"+domain+"/ns/bookstore/sa/store u-1") {
			return fmt.Errorf("streams were opened by %q", s.nodes)
		}
		return nil
	})
}

// TestTrustDomainChanges has a pod that was made for one trust domain, and a mesh that
// moves to another one, in the steps of a rotation. Neither Envoy nor its agent is
// started again, until the container is, long after.
func TestTrustDomainChanges(t *testing.T) {
	w := newWorld(t)
	w.serveApp()
	old, next := domain{"cluster.local", w.root}, domain{"mesh.new", newAuthority(t)}
	w.trustToo(next.authority)
	w.lifetime = 30 * time.Second // asks every second or two who signs
	w.goOn(change{signs: old, serves: old, trusted: []domain{old}})
	stop := w.serve()
	s := w.start("", nil)
	s.ready()
	s.wantStream("cluster.local")
	trust := func(want, not string) {
		t.Helper()
		s.eventually("Envoy's file of trust has "+want+" and not "+not, func() error {
			text, err := os.ReadFile(filepath.Join(w.dir, "state/sds/trust.yaml"))
			if err == nil && (!strings.Contains(string(text), want) || not != "" && strings.Contains(string(text), not)) {
				err = errors.New("it has not")
			}
			return err
		})
	}
	trust("trusted_ca", "spiffe://")

	// Trust both.
	w.goOn(change{signs: old, serves: old, trusted: []domain{old, next}})
	trust(`"exact":"spiffe://mesh.new/ns/outrigger-system/sa/outriggerd"`, "trusted_ca")
	stop() // the stream comes back by what is in the file now
	stop = w.serve()
	s.eventually("Envoy is back", func() error { return s.stat("control_plane.connected_state", "1") })

	// Sign with the new.
	before := w.serials()
	w.goOn(change{signs: next, serves: old, trusted: []domain{old, next}})
	s.eventually("Envoy has a certificate of the new trust domain", func() error {
		if now := w.serials(); len(now) != 1 || len(before) == 1 && now[0] == before[0] {
			return fmt.Errorf("it has %q, and had %q", now, before)
		}
		return nil
	})
	stop()

	// Serve with the new.
	w.goOn(change{signs: next, serves: next, trusted: []domain{old, next}})
	stop = w.serve()
	s.wantStream("mesh.new")

	// Trust the new alone.
	w.goOn(change{signs: next, serves: next, trusted: []domain{next}})
	trust(`"name":"mesh.new"`, `"name":"cluster.local"`)
	w.write("ca.crt", string(next.authority.pem()))

	// The old root makes nobody an outriggerd any more, of whichever trust domain.
	stop()
	for _, of := range []string{"cluster.local", "mesh.new"} {
		w.goOn(change{signs: next, serves: domain{of, w.root}, trusted: []domain{next}})
		stop = w.serve()
		s.eventually("nobody believes a control plane of the old root", func() error {
			return s.stat("control_plane.connected_state", "0")
		})
		stop()
	}
	if code, text, err := s.get(15003, "/"); code != http.StatusOK || text != "hello" {
		t.Errorf("through Envoy: got %d %q %v; want the application's answer", code, text, err)
	}
	if n := strings.Count(s.log.String(), "envoy started"); n != 1 {
		t.Errorf("Envoy was started %d times", n)
	}

	// The container is restarted: the same pod, in a mesh without its trust domain.
	if err := s.command.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	s.exit()
	w.goOn(change{signs: next, serves: next, trusted: []domain{next}})
	w.serve()
	w.mu.Lock()
	w.nodes = nil
	w.mu.Unlock()
	s = w.start("", nil)
	s.ready()
	s.wantStream("mesh.new")
}

// TestPodMadeDuringTheChange starts when outriggerd is in the other trust domain
// already: the pod's settings name both.
func TestPodMadeDuringTheChange(t *testing.T) {
	w := newWorld(t)
	w.app = "127.0.0.1:1"
	old, next := domain{"cluster.local", w.root}, domain{"mesh.new", newAuthority(t)}
	w.trustToo(next.authority)
	w.goOn(change{signs: next, serves: next, trusted: []domain{old, next}})
	w.write("ca.crt", string(w.root.pem())+string(next.authority.pem()))
	w.serve()
	s := w.start("", func(s *bootstrap.Settings) { s.AlsoTrusted = []string{"mesh.new"} })
	s.ready()
	s.wantStream("mesh.new")
}

// TestStrangeTrustDomain holds that a root of the mesh makes nobody an outriggerd of a
// trust domain that is not accepted.
func TestStrangeTrustDomain(t *testing.T) {
	w := newWorld(t)
	w.goOn(change{signs: domain{"cluster.local", w.root}, serves: domain{"mesh.evil", w.root}})
	w.serve()
	s := w.start("", nil)
	s.logs("verify outriggerd: trust domain")
	s.logs("is not accepted")
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.asked != 0 {
		t.Error("the token was sent to somebody who is not the control plane")
	}
}

// heard returns an error unless the agent knows that a trust domain is accepted.
func (w *world) heard(domain string) error {
	text, err := os.ReadFile(filepath.Join(w.dir, "state/accepted.json"))
	if err == nil && !strings.Contains(string(text), `"`+domain+`"`) {
		err = errors.New("it has not")
	}
	return err
}
