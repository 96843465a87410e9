package server

import (
	"context"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
	"github.com/outrigger-mesh/outrigger/internal/signing"
	"github.com/outrigger-mesh/outrigger/internal/xds"
)

const newDomain = "mesh.new"

func TestTrustVerifiesByDomain(t *testing.T) {
	old, new := newTestCA(t), newTestCA(t)
	c := credentialsOf(t, old)
	c.trust(mesh.TrustDomain{Name: trustDomain, Bundle: old.bundle()}, mesh.TrustDomain{Name: newDomain, Bundle: new.bundle()}, mesh.TrustDomain{Name: "left.mesh"})
	trust := newTrust(c)
	id := mesh.Identity{Namespace: "town", ServiceAccount: "a"}
	for name, tc := range map[string]struct {
		ca     *testCA
		uri    string
		domain string // in which it is accepted; empty for none
	}{
		"OldForOld":      {old, id.URI(trustDomain), trustDomain},
		"NewForNew":      {new, id.URI(newDomain), newDomain},
		"OldForNew":      {old, id.URI(newDomain), ""},
		"NewForOld":      {new, id.URI(trustDomain), ""},
		"Foreign":        {newTestCA(t), id.URI(trustDomain), ""},
		"UnknownDomain":  {old, id.URI("elsewhere"), ""},
		"WithoutRoots":   {old, id.URI("left.mesh"), ""},
		"NoIdentity":     {old, "https://" + trustDomain + "/ns/town/sa/a", ""},
		"OtherFormOfURI": {old, "spiffe://" + trustDomain + "/town/a", ""},
	} {
		t.Run(name, func(t *testing.T) {
			leaf := parsed(t, tc.ca.leaf(t, tc.uri, "", time.Hour))
			v, err := trust.verify([]*x509.Certificate{leaf})
			if v.trustDomain != tc.domain || (err == nil) != (tc.domain != "") {
				t.Fatalf("accepted in %q, %v; want %q", v.trustDomain, err, tc.domain)
			}
			if err == nil && (v.identity != id || !slices.Equal(v.roots, []string{fingerprint(tc.ca.root.Raw)}) || !v.ends.Equal(leaf.NotAfter)) {
				t.Errorf("it proves %+v", v)
			}
		})
	}
	two := parsed(t, old.leaf(t, id.URI(trustDomain), "", time.Hour, id.URI(newDomain)))
	if _, err := trust.verify([]*x509.Certificate{two}); err == nil || !strings.Contains(err.Error(), "2 URIs") {
		t.Errorf("a name of the new domain beside one of the old, of the old root: %v", err)
	}
	if _, err := trust.verify(nil); err == nil {
		t.Error("no certificate at all is accepted")
	}
	c.trust(mesh.TrustDomain{Name: trustDomain, Bundle: "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"})
	if _, err := trust.verify([]*x509.Certificate{parsed(t, old.leaf(t, id.URI(trustDomain), "", time.Hour))}); err == nil || !strings.Contains(err.Error(), trustDomain) {
		t.Errorf("got %v; want an error that names the trust domain whose roots are damaged", err)
	}
}

// TestRootThatWasRenewedWithItsKey holds that a certificate leads to both, whichever is
// trusted first: a mesh that moves to the new one waits for certificates that lead there.
func TestRootThatWasRenewedWithItsKey(t *testing.T) {
	old := newTestCA(t)
	new := testCAOf(t, old.key)
	want := []string{fingerprint(old.root.Raw), fingerprint(new.root.Raw)}
	slices.Sort(want)
	leaf := parsed(t, new.leaf(t, mesh.Identity{Namespace: "town", ServiceAccount: "a"}.URI(trustDomain), "", time.Hour))
	for _, bundle := range []string{old.bundle() + new.bundle(), new.bundle() + old.bundle()} {
		c := credentialsOf(t, old)
		c.trust(mesh.TrustDomain{Name: trustDomain, Bundle: bundle})
		v, err := newTrust(c).verify([]*x509.Certificate{leaf})
		must(t, err)
		if !slices.Equal(v.roots, want) {
			t.Errorf("it leads to %v; want both, %v", v.roots, want)
		}
	}
}

// TestStreamsOfSeveralTrustDomains follows a change of the trust domain.
func TestStreamsOfSeveralTrustDomains(t *testing.T) {
	w := newWorld(t, nil)
	new := newTestCA(t)
	town := newTown(w.ca)
	pod := town.pod("a-1", "a")
	w.publish(t, town, pod)
	first := w.join(t, pod)
	first.subscribe(xds.Cluster)
	first.hear()

	both := []mesh.TrustDomain{{Name: trustDomain, Bundle: w.ca.bundle()}, {Name: newDomain, Bundle: new.bundle()}}
	w.shows.trust(both...)
	second := w.connect(t, new.leaf(t, pod.Identity.URI(newDomain), pod.ID.UID, time.Hour), pod.ID.String())
	second.subscribe(xds.Cluster)
	second.hear()
	if got := w.Proxies(); len(got) != 1 || got[0].TrustDomain != newDomain || !slices.Equal(got[0].Roots, []string{fingerprint(new.root.Raw)}) || got[0].Proxy != pod.ID {
		t.Errorf("want the newest stream of the pod, with the new root; got %+v", got)
	}

	w.shows.trust(both[1])
	w.judge()
	if got := status.Code(first.end()); got != codes.Unauthenticated {
		t.Errorf("the stream of a trust domain that is not accepted ended as %s", got)
	}
	select {
	case err := <-second.ended:
		t.Errorf("the stream of the trust domain that is accepted ended: %v", err)
	default:
	}
}

// TestAcknowledgedTrust holds that trust counts as acknowledged when everything that
// says it was, and not sooner.
func TestAcknowledgedTrust(t *testing.T) {
	w := newWorld(t, nil)
	town := newTown(w.ca)
	pod := town.pod("a-1", "a")
	town.service("shop", 1)
	e := w.join(t, pod)
	set := w.publish(t, town, pod)
	acknowledged := func() string {
		if got := w.Proxies(); len(got) == 1 {
			return got[0].Trust
		}
		return "not connected"
	}
	before := town.parts.Settings.Trust().Key
	e.settle(set)
	eventually(t, "the trust of the start is acknowledged", func() bool { return acknowledged() == before })

	town.parts.Settings.AlsoTrusted = []mesh.TrustDomain{{Name: newDomain, Bundle: newTestCA(t).bundle()}}
	after := town.parts.Settings.Trust().Key
	w.publish(t, town, pod)
	got := map[xds.Type]bool{}
	for !got[xds.Cluster] || !got[xds.Secret] || !got[xds.Endpoints] {
		r := e.hear()
		got[typeOf(r)] = true
		if typeOf(r) == xds.Secret {
			e.nack(r, "not this")
		} else {
			e.ack(r)
		}
	}
	eventually(t, "the clusters are acknowledged", func() bool {
		s := w.statuses()
		return len(s) == 1 && s[0].LastRefusal != nil && s[0].Acknowledged["cluster"] == s[0].Target
	})
	if got := acknowledged(); got != before {
		t.Errorf("a proxy that refused the roots trusts %q; want those of before, %q", got, before)
	}

	// On its next stream it says what it has, and gets what it refused.
	e.cancel()
	e.end()
	e = w.join(t, pod)
	e.settle(w.publish(t, town, pod))
	eventually(t, "the new trust is acknowledged", func() bool { return acknowledged() == after })
}

// TestSignedCertificates holds what is remembered of them, and for how long.
func TestSignedCertificates(t *testing.T) {
	var next signing.Signed
	var mu sync.Mutex
	w := newWorld(t, func(c *Config) {
		c.SignRate, c.SignBurst = 1000, 1000
		c.Signer = signerFunc(func(string, []byte) (signing.Signed, error) {
			mu.Lock()
			defer mu.Unlock()
			return next, nil
		})
	})
	town := newTown(w.ca)
	pod := town.pod("a-1", "a")
	w.publish(t, town, pod)
	client := signing.NewCertificatesClient(w.dial(t, nil))
	ctx := metadata.AppendToOutgoingContext(context.WithoutCancel(t.Context()), "authorization", "Bearer a")
	sign := func(ca *testCA, uid string) error {
		mu.Lock()
		next = signing.Signed{Chain: ca.leaf(t, pod.Identity.URI(trustDomain), uid, time.Hour).Certificate, By: testAuthority}
		mu.Unlock()
		_, err := client.Sign(ctx, &signing.SignRequest{Csr: []byte("csr")})
		return err
	}
	e := w.join(t, pod)
	e.subscribe(xds.Cluster)
	e.hear()
	must(t, sign(w.ca, "uid-of-another"))
	must(t, sign(w.ca, pod.ID.UID))
	issued := w.Issued()
	if len(issued) != 2 || issued[0].UID != pod.ID.UID || issued[0].Authority != "built-in" || issued[0].Generation != "1" || !slices.Equal(issued[0].Roots, []string{fingerprint(w.ca.root.Raw)}) {
		t.Errorf("got %+v", issued)
	}
	if got := status.Code(e.end()); got != codes.Unavailable {
		t.Errorf("the stream of a pod with a new certificate ended as %s; want it to come again", got)
	}
	if err := sign(newTestCA(t), pod.ID.UID); status.Code(err) != codes.Unavailable {
		t.Errorf("a certificate that leads to no root of the mesh is handed out: %v", err)
	}

	// Pods that are gone, or never came, are forgotten; a young one may be on its way.
	later := time.Now().Add(2 * young)
	w.mu.Lock()
	w.forgetIssued(town.snapshot(t), later)
	w.mu.Unlock()
	if issued := w.Issued(); len(issued) != 1 || issued[0].UID != pod.ID.UID {
		t.Errorf("after a while there is %+v; want the pod that is there", issued)
	}
	w.mu.Lock()
	w.forgetIssued(town.snapshot(t), later.Add(time.Hour))
	w.mu.Unlock()
	if issued := w.Issued(); len(issued) != 0 {
		t.Errorf("a certificate that has ended is remembered: %+v", issued)
	}

	// However many pods ask, memory has an end; those that are known stay up to date.
	w.mu.Lock()
	for n := range maxIssued {
		uid := fmt.Sprintf("uid-%d", n)
		w.issued[uid] = Issued{UID: uid}
	}
	w.mu.Unlock()
	must(t, sign(w.ca, "uid-0"))
	must(t, sign(w.ca, "uid-too-many"))
	if issued := w.Issued(); len(issued) != maxIssued || issued[0].UID != "uid-0" || len(issued[0].Roots) == 0 {
		t.Errorf("%d are remembered, of at most %d; the first is %+v", len(issued), maxIssued, issued[0])
	}
}

func TestCurrent(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.AskRate, c.AskBurst = 1e-9, 2 })
	for n := range 3 {
		answer, err := signing.NewCertificatesClient(w.dial(t, nil)).Current(t.Context(), &signing.CurrentRequest{})
		if n == 2 {
			if status.Code(err) != codes.ResourceExhausted {
				t.Errorf("an address that asks too often gets %v, %v", answer, err)
			}
			continue
		}
		must(t, err)
		if answer.GetAuthority().GetName() != "built-in" || answer.GetAuthority().GetTrustDomain() != trustDomain || len(answer.GetTrusted()) != 1 || len(answer.GetTrusted()[0].GetRoots()) != 1 {
			t.Errorf("got %v", answer)
		}
	}
}

// TestAnotherAuthorityEndsConnections spreads them, and ends each once.
func TestAnotherAuthorityEndsConnections(t *testing.T) {
	w := newWorld(t, nil)
	town := newTown(w.ca)
	for i := range 50 {
		town.pod(fmt.Sprintf("a-%d", i), "a")
	}
	var due []time.Duration
	for _, pod := range town.parts.Workloads {
		p := newProxy(pod.ID, vouched{}, "")
		must(t, w.Server.join(p))
		t.Cleanup(p.stopRenewal)
		p.renew(24*time.Hour, "the certificate is due to be replaced")
	}
	w.renewAll()
	_, proxies := w.current()
	for _, p := range proxies {
		due = append(due, time.Until(p.due))
		p.renew(24*time.Hour, "later") // does not put it off
		if time.Until(p.due) > 2*noticing {
			t.Errorf("the end of a connection was put off to %s", p.due)
		}
	}
	earliest, latest := 24*time.Hour, time.Duration(0)
	for _, d := range due {
		earliest, latest = min(earliest, d), max(latest, d)
	}
	if earliest < noticing-time.Second || latest > 2*noticing || latest-earliest < noticing/2 {
		t.Errorf("connections end between %s and %s from now; want that spread from %s to %s", earliest, latest, noticing, 2*noticing)
	}
}

// TestConnectionIsReplacedBeforeItsCertificateEnds holds that agents have renewed by
// the time, which they do within 55 % of what is left.
func TestConnectionIsReplacedBeforeItsCertificateEnds(t *testing.T) {
	for range 1000 {
		if d := replacedIn(10 * time.Minute); d < 6*time.Minute || d > 7*time.Minute {
			t.Fatalf("a connection with a certificate of ten minutes is replaced after %s", d)
		}
	}
	if d := replacedIn(0); d != soonest {
		t.Errorf("one whose certificate ends now is replaced after %s", d)
	}
}

// TestPodWithoutItsNameChangesItsTrustDomain has a pod whose certificate is somebody
// else's, as [TestCertificateThatNamesNoPod]. Nobody tells the server that it is
// another one, so while the mesh changes it looks.
func TestPodWithoutItsNameChangesItsTrustDomain(t *testing.T) {
	at := map[mesh.ProxyID]string{}
	w := newWorld(t, func(c *Config) { c.Pods = borrowers{Pods: c.Pods, at: at} })
	new := newTestCA(t)
	w.shows.trust(mesh.TrustDomain{Name: trustDomain, Bundle: w.ca.bundle()}, mesh.TrustDomain{Name: newDomain, Bundle: new.bundle()})
	town := newTown(w.ca)
	pod, named := town.pod("a-1", "a"), town.pod("b-1", "b")
	at[pod.ID] = "127.0.0.1"
	w.publish(t, town, pod)
	shows := func(ca *testCA, domain string) *envoy {
		t.Helper()
		e := w.connect(t, ca.leaf(t, pod.Identity.URI(domain), "", time.Hour), pod.ID.String())
		e.subscribe(xds.Cluster)
		e.hear()
		i := slices.IndexFunc(w.Proxies(), func(s ProxyState) bool { return s.Proxy == pod.ID })
		if i < 0 || w.Proxies()[i].TrustDomain != domain || !slices.Equal(w.Proxies()[i].Roots, []string{fingerprint(ca.root.Raw)}) {
			t.Errorf("the pod shows a certificate of %s; the server knows %+v", domain, w.Proxies())
		}
		return e
	}
	first := shows(w.ca, trustDomain)
	other := w.join(t, named)
	other.subscribe(xds.Cluster)
	other.hear()

	// looksAgain returns the pod's connection; looks tells whether it ends soon.
	looksAgain := func(why string, awaited *mesh.TrustDomain, looks bool) (own *proxy) {
		t.Helper()
		must(t, w.Await(awaited))
		w.recheck()
		_, proxies := w.current()
		for _, p := range proxies {
			if soon := time.Until(p.due) <= 2*noticing; soon != (looks && p.id == pod.ID) {
				t.Errorf("%s: the connection of %s ends in %s; want that soon for a pod without its name, if at all: %t", why, p.id, time.Until(p.due), looks)
			}
			if p.id == pod.ID {
				own = p
			}
		}
		return own
	}
	before, after := mesh.TrustDomain{Name: trustDomain, Bundle: w.ca.bundle()}, mesh.TrustDomain{Name: newDomain, Bundle: new.bundle()}
	looksAgain("nothing is awaited", nil, false)
	looksAgain("it shows what is awaited", &before, false)
	looksAgain("another trust domain is awaited", &after, true).renew(0, "soon is now")
	if got := status.Code(first.end()); got != codes.Unavailable {
		t.Errorf("the stream ended as %s; want it to come again", got)
	}
	shows(new, newDomain)
	looksAgain("it shows what was awaited", &after, false)
	looksAgain("another root is awaited", &mesh.TrustDomain{Name: newDomain, Bundle: w.ca.bundle()}, true)
}
