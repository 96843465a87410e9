package main

import (
	"crypto/tls"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/outrigger-mesh/outrigger/bootstrap"
)

const newWorkloadID = "spiffe://mesh.new/ns/bookstore/sa/store"

// shortLife makes the agent ask about every five seconds who signs.
const shortLife = 100 * time.Second

// wantShown lets Envoy connect again and waits until it has done so with a certificate of
// somebody else for an identity.
func (s *sidecar) wantShown(id string, stop func()) (again func()) {
	s.t.Helper()
	stop()
	s.mu.Lock()
	s.nodes = nil
	s.mu.Unlock()
	again = s.serve()
	s.eventually("Envoy's stream is of "+id, func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if len(s.nodes) == 0 || !strings.HasSuffix(s.nodes[len(s.nodes)-1], " "+id+" ") {
			return fmt.Errorf("streams were opened by %q", s.nodes)
		}
		return nil
	})
	return again
}

// wantUndisturbed checks that neither outriggerd signed, nor Envoy was started again.
func (s *sidecar) wantUndisturbed() {
	s.t.Helper()
	if n := strings.Count(s.log.String(), "envoy started"); n != 1 {
		s.t.Errorf("Envoy was started %d times", n)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.asked != 0 {
		s.t.Errorf("outriggerd was asked for %d certificates", s.asked)
	}
}

// domains are those of a mesh that moves from its first one to another.
func (w *world) domains() (old, next domain) {
	w.t.Helper()
	old, next = domain{"cluster.local", w.root}, domain{"mesh.new", newAuthority(w.t)}
	w.trustToo(next.authority)
	return old, next
}

// TestWorkloadAPIOfTwoTrustDomains has an API that gives certificates of both trust
// domains from the start. The pod uses that of the one that signs, through all steps of
// a rotation and back.
func TestWorkloadAPIOfTwoTrustDomains(t *testing.T) {
	w := newWorld(t)
	w.serveApp()
	old, next := w.domains()
	w.goOn(change{signs: old, serves: old, trusted: []domain{old}})
	stop := w.serve()
	first, second := old.authority.issueFor(t, workloadID, shortLife), next.authority.issueFor(t, newWorkloadID, shortLife)
	api := &workloadAPI{changed: make(chan struct{})}
	api.say(t, second, first)
	api.serve(t, filepath.Join(w.dir, "identity", "api.sock"))
	s := w.borrow(bootstrap.Identity{WorkloadAPI: "api.sock"})
	s.wantBorrowed(first)

	// Trust both: the pod goes on with the one that everybody trusts.
	w.goOn(change{signs: old, serves: old, trusted: []domain{old, next}})
	s.eventually("the agent has heard of both", func() error { return w.heard("mesh.new") })
	s.wantCertificate(first)

	// Sign with the new, and serve with it.
	w.goOn(change{signs: next, serves: old, trusted: []domain{old, next}})
	s.wantCertificate(second)
	w.goOn(change{signs: next, serves: next, trusted: []domain{old, next}})
	stop = s.wantShown(newWorkloadID, stop)

	// Somebody undoes it, and thinks again.
	w.goOn(change{signs: old, serves: next, trusted: []domain{old, next}})
	s.wantCertificate(first)
	w.goOn(change{signs: next, serves: next, trusted: []domain{old, next}})
	s.wantCertificate(second)

	// Trust the new alone: what the API has of the old counts no more, alone neither.
	w.goOn(change{signs: next, serves: next, trusted: []domain{next}})
	w.write("ca.crt", string(next.authority.pem()))
	s.eventually("the agent has heard of the new alone", func() error {
		if w.heard("cluster.local") == nil {
			return fmt.Errorf("it has not")
		}
		return nil
	})
	api.say(t, old.authority.issue(t, workloadID))
	s.logs("want one for " + newWorkloadID)
	s.wantCertificate(second)
	s.wantShown(newWorkloadID, stop)
	s.wantUndisturbed()
}

// TestWorkloadAPIThatMovesToAnotherTrustDomain has an API that gives certificates of one
// trust domain: of the old one, and then of the new one, sooner than the mesh wants.
func TestWorkloadAPIThatMovesToAnotherTrustDomain(t *testing.T) {
	w := newWorld(t)
	w.serveApp()
	old, next := w.domains()
	w.goOn(change{signs: old, serves: old, trusted: []domain{old}})
	stop := w.serve()
	first, second := old.authority.issueFor(t, workloadID, shortLife), next.authority.issueFor(t, newWorkloadID, shortLife)
	api := &workloadAPI{changed: make(chan struct{})}
	api.say(t, first)
	api.serve(t, filepath.Join(w.dir, "identity", "api.sock"))
	s := w.borrow(bootstrap.Identity{WorkloadAPI: "api.sock"})
	s.wantBorrowed(first)

	// The mesh does not know the new one yet.
	api.say(t, second)
	s.logs("the Workload API has certificates for [" + newWorkloadID + "]; want one for " + workloadID)

	// It trusts the new one, but perhaps not everywhere.
	w.goOn(change{signs: old, serves: old, trusted: []domain{old, next}})
	s.logs("the certificate is of trust domain mesh.new, and outriggerd signs for cluster.local; the one of before is kept")
	s.wantCertificate(first)

	// A certificate of the old root for the new domain, and the other way round, are
	// nobody's.
	for _, bad := range []tls.Certificate{old.authority.issue(t, newWorkloadID), next.authority.issue(t, workloadID)} {
		before := strings.Count(s.log.String(), "verify the certificate up to the mesh's roots")
		api.say(t, bad)
		s.eventually("it is refused", func() error {
			if strings.Count(s.log.String(), "verify the certificate up to the mesh's roots") == before {
				return fmt.Errorf("it is not")
			}
			return nil
		})
	}

	api.say(t, second)
	w.goOn(change{signs: next, serves: old, trusted: []domain{old, next}})
	s.wantCertificate(second)
	w.goOn(change{signs: next, serves: next, trusted: []domain{next}})
	s.wantShown(newWorkloadID, stop)
	s.wantUndisturbed()
}

// TestPodThatBorrowsIsMadeDuringTheChange starts with files of the new trust domain,
// for a pod that was made when outriggerd knew nothing of it.
func TestPodThatBorrowsIsMadeDuringTheChange(t *testing.T) {
	w := newWorld(t)
	w.serveApp()
	old, next := w.domains()
	w.goOn(change{signs: next, serves: old, trusted: []domain{old, next}})
	stop := w.serve()
	certificate := next.authority.issue(t, newWorkloadID)
	w.mountFiles(certificate)
	s := w.borrow(bootstrap.Identity{})
	s.wantCertificate(certificate)
	s.wantShown(newWorkloadID, stop)
	s.wantUndisturbed()
}
