package xds_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
	"github.com/outrigger-mesh/outrigger/internal/xds"
	"github.com/outrigger-mesh/outrigger/internal/xds/envoytest"
)

// newDomain is what a mesh moves to from trustDomain.
const newDomain = "mesh.new"

// trusting makes everything in a View accept the trust domains, which are in order
// of their names.
func trusting(v mesh.View, domains ...mesh.TrustDomain) mesh.View {
	var also, servers []string
	for i, d := range domains {
		if i > 0 {
			also = append(also, d.Name)
		}
		if d.Bundle != "" {
			servers = append(servers, d.Name)
		}
	}
	servers = append(servers, "none")[:max(1, len(servers))]
	v.Trust = &mesh.Trust{TrustDomain: domains[0].Name, Bundle: domains[0].Bundle, Also: domains[1:]}
	v.Inbound, v.Outbound = new(*v.Inbound), new(*v.Outbound)
	v.Inbound.TrustDomain, v.Inbound.AlsoTrusted = domains[0].Name, also
	bundles := v.Outbound.Bundles
	v.Outbound.Bundles = nil
	for _, b := range bundles {
		b := new(*b)
		b.TrustDomain, b.AlsoTrusted = servers[0], servers[1:]
		v.Outbound.Bundles = append(v.Outbound.Bundles, b)
	}
	return v
}

// A card is a certificate that a caller shows.
type card struct {
	ca       *envoytest.CA
	uris     []string
	sessions tls.ClientSessionCache
}

// dialWith connects with a card, and believes any server.
func (s *server) dialWith(ctx context.Context, t *testing.T, c card, port int, alpn ...string) (*tls.Conn, error) {
	t.Helper()
	chain, key := c.ca.Sign(t, c.uris...)
	certificate, err := tls.X509KeyPair(chain, key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := s.peer.Dial(ctx, "tcp", fmt.Sprintf("10.1.0.2:%d", port))
	if err != nil {
		return nil, err
	}
	conn := tls.Client(raw, &tls.Config{
		Certificates: []tls.Certificate{certificate}, ServerName: fmt.Sprintf("%d.store.books.outrigger", port), NextProtos: alpn,
		ClientSessionCache: c.sessions, InsecureSkipVerify: true, // about the caller's certificate only
	})
	return conn, conn.HandshakeContext(ctx)
}

// admits reports how a port meets a card: the status of a request, or 0 where the
// connection is refused; and for TCP 200 where the application speaks.
func (s *server) admits(t *testing.T, c card, port int, http1 bool) (code int, resumed bool) {
	t.Helper()
	var alpn []string
	if http1 {
		alpn = []string{"http/1.1"}
	}
	conn, err := s.dialWith(t.Context(), t, c, port, alpn...)
	if err != nil {
		return 0, false
	}
	defer func() { _ = conn.Close() }()
	resumed = conn.ConnectionState().DidResume
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if !http1 {
		if _, err := line(conn); err != nil {
			return 0, resumed
		}
		return http.StatusOK, resumed
	}
	if _, err := fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: store\r\n\r\n"); err != nil {
		return 0, resumed
	}
	reply, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0, resumed
	}
	_ = reply.Body.Close()
	return reply.StatusCode, resumed
}

// TestTrustDomains holds that a root vouches for identities of its own trust domain
// and of no other, whatever else is accepted at the time.
func TestTrustDomains(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	old, new, foreign := s.ca, envoytest.NewCA(t), envoytest.NewCA(t)
	serveHTTP(t, s.host, ":8080", "http")
	serveHTTP(t, s.host, ":8081", "permissive")
	serveBanner(t, s.host, ":3306", "tcp first")
	serveBanner(t, s.host, ":3307", "group")
	view := s.view(
		everyone(3306, mesh.TCP),
		mesh.InboundPort{Port: 3307, Protocol: mesh.TCP, Groups: []mesh.Group{"books"}},
		everyone(8080, mesh.HTTP),
		mesh.InboundPort{Port: 8081, Protocol: mesh.HTTP, Mode: mesh.Permissive},
	)
	only := mesh.TrustDomain{Name: trustDomain, Bundle: old.Bundle()}
	both := []mesh.TrustDomain{only, {Name: newDomain, Bundle: new.Bundle()}}
	named := func(ca *envoytest.CA, domain string, as mesh.Identity) card {
		return card{ca: ca, uris: []string{as.URI(domain)}}
	}
	type ports map[int]int // what each answers; 0 refuses the connection
	all, thief403, none := ports{3306: 200, 3307: 200, 8080: 200, 8081: 200}, ports{3306: 0, 3307: 200, 8080: 403, 8081: 200}, ports{3306: 0, 3307: 0, 8080: 0, 8081: 0}

	const changes = "/stats?filter=listener_manager.listener_(modified|in_place_updated|added)"
	apply(t, s.envoy, view)
	before, _ := s.envoy.Get(t.Context(), changes)
	for _, step := range []struct {
		reason  string
		domains []mesh.TrustDomain
		cases   map[string]struct {
			card card
			want ports
		}
	}{
		{"both", both, map[string]struct {
			card card
			want ports
		}{
			"the old root for the old domain":       {named(old, trustDomain, buyer), all},
			"the new root for the new domain":       {named(new, newDomain, buyer), all},
			"another account of the old domain":     {named(old, trustDomain, thief), thief403},
			"another account of the new domain":     {named(new, newDomain, thief), thief403},
			"the old root for the new domain":       {named(old, newDomain, buyer), none},
			"the new root for the old domain":       {named(new, trustDomain, buyer), none},
			"a foreign root":                        {named(foreign, trustDomain, buyer), none},
			"the old root for a foreign domain":     {named(old, "mesh.foreign", buyer), none},
			"a domain that begins like the new one": {named(new, newDomain+".evil", buyer), none},
			"no name at all":                        {card{ca: new}, none},
		}},
		{"the new one without roots", []mesh.TrustDomain{only, {Name: newDomain}}, map[string]struct {
			card card
			want ports
		}{
			"the old root for the old domain": {named(old, trustDomain, buyer), all},
			"the old root for the new domain": {named(old, newDomain, buyer), none},
			"the new root for the new domain": {named(new, newDomain, buyer), none},
		}},
		{"the new one alone", both[1:], map[string]struct {
			card card
			want ports
		}{
			"the old root for the old domain": {named(old, trustDomain, buyer), none},
			"the new root for the new domain": {named(new, newDomain, buyer), all},
			"the new root for the old domain": {named(new, trustDomain, buyer), none},
		}},
	} {
		set := apply(t, s.envoy, trusting(view, step.domains...))
		text, err := set.Dump()
		if err != nil || strings.Contains(string(text), "trustedCa") != (len(step.domains) == 1) {
			t.Errorf("%s: a merged bundle beside the validator of several trust domains, or none for one: %v", step.reason, err)
		}
		for name, c := range step.cases {
			for port, want := range c.want {
				if got, _ := s.admits(t, c.card, port, port > 8000); got != want {
					t.Errorf("%s: %s at port %d: %d, want %d", step.reason, name, port, got, want)
				}
			}
		}
	}
	if after, _ := s.envoy.Get(t.Context(), changes); after != before {
		t.Errorf("trust changed a listener: before\n%safter\n%s", before, after)
	}
	// Whichever validator it was, the log tells a missing grant from a stranger.
	for _, caller := range []string{thief.URI(newDomain), thief.URI(trustDomain)} {
		envoytest.Eventually(t, func() error {
			for line := range strings.Lines(s.envoy.Log()) {
				if strings.Contains(line, `"caller":"`+caller+`"`) && strings.Contains(line, `"port":"3306"`) && strings.Contains(line, `"reason":"no grant matched"`) {
					return nil
				}
			}
			return fmt.Errorf("no line says that %s has no grant for port 3306", caller)
		})
	}
}

// TestTrustIsNotResumed holds that a session from before a change of trust gets
// nobody round it.
func TestTrustIsNotResumed(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	new := envoytest.NewCA(t)
	serveHTTP(t, s.host, ":8080", "http")
	serveBanner(t, s.host, ":3306", "tcp first")
	view := s.view(everyone(3306, mesh.TCP), everyone(8080, mesh.HTTP))
	both := []mesh.TrustDomain{{Name: trustDomain, Bundle: s.ca.Bundle()}, {Name: newDomain, Bundle: new.Bundle()}}
	c := card{ca: s.ca, uris: []string{buyer.URI(trustDomain)}, sessions: tls.NewLRUClientSessionCache(8)}
	for _, step := range []struct {
		domains []mesh.TrustDomain
		want    int
	}{{both[:1], 200}, {both, 200}, {both[1:], 0}} {
		apply(t, s.envoy, trusting(view, step.domains...))
		for port, http1 := range map[int]bool{3306: false, 8080: true} {
			for range 3 {
				if got, resumed := s.admits(t, c, port, http1); got != step.want || resumed {
					t.Errorf("%d trust domains, port %d: got %d, resumed %v; want %d and a whole handshake", len(step.domains), port, got, resumed, step.want)
				}
			}
		}
	}
}

// TestTrustDomainIsChangedUnderLoad moves a caller and a server from one trust
// domain to another, and back, in the steps of a rotation.
func TestTrustDomainIsChangedUnderLoad(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	new := envoytest.NewCA(t)
	serveHTTP(t, w.host, ":8080", "http")
	serveBanner(t, w.host, ":3306", "tcp first")
	server := w.view(everyone(3306, mesh.TCP), everyone(8080, mesh.HTTP))
	stores := []mesh.Identity{store}
	caller := w.calls(false,
		mesh.Bundle{Name: port("books", "db", 80), Protocol: mesh.TCP, Addresses: addrs("10.96.0.6"), Identities: stores, Endpoints: []mesh.Endpoint{endpoint("10.1.0.2:3306", store)}},
		mesh.Bundle{Name: port("books", "store", 80), Protocol: mesh.HTTP, Addresses: addrs("10.96.0.1"), Identities: stores, Endpoints: []mesh.Endpoint{endpoint("10.1.0.2:8080", store)}},
	)
	both := []mesh.TrustDomain{{Name: trustDomain, Bundle: w.ca.Bundle()}, {Name: newDomain, Bundle: new.Bundle()}}
	spread := func(domains ...mesh.TrustDomain) {
		t.Helper()
		apply(t, w.envoy, trusting(server, domains...))
		apply(t, w.caller, trusting(caller, domains...))
	}
	renew := func(ca *envoytest.CA, domain string) {
		t.Helper()
		w.envoy.Renew(t, ca.Secret(t, store.URI(domain)))
		w.caller.Renew(t, ca.Secret(t, buyer.URI(domain)))
		envoytest.Eventually(t, func() error { // until new connections show it both ways
			got := do(t, w.app(t), "GET", "http://10.96.0.1/", "Connection", "close")
			if got.code != 200 {
				return fmt.Errorf("got %d %s", got.code, got.body)
			}
			for e, name := range map[*envoytest.Envoy]string{w.envoy: store.URI(domain), w.caller: buyer.URI(domain)} {
				if shown, err := e.Get(t.Context(), "/certs"); err != nil || !strings.Contains(shown, name) {
					return fmt.Errorf("%s is not in use: %w", name, err)
				}
			}
			return nil
		})
	}
	spread(both[0])
	const changes = "/stats?filter=listener_manager.listener_(modified|in_place_updated|added)"
	var before [2]string
	for i, e := range []*envoytest.Envoy{w.envoy, w.caller} {
		before[i], _ = e.Get(t.Context(), changes)
	}
	load := w.load(t)
	for range 3 {
		spread(both...)
		renew(new, newDomain)
		spread(mesh.TrustDomain{Name: trustDomain}, both[1])
		spread(both[1])
		if got, _ := w.admits(t, card{ca: w.ca, uris: []string{buyer.URI(trustDomain)}}, 8080, true); got != 0 {
			t.Errorf("the trust domain that was left behind is answered %d", got)
		}
		spread(both...)
		renew(w.ca, trustDomain)
		spread(both[0], mesh.TrustDomain{Name: newDomain})
		spread(both[0])
		if got, _ := w.admits(t, card{ca: new, uris: []string{buyer.URI(newDomain)}}, 3306, false); got != 0 {
			t.Errorf("the trust domain that was left behind is answered %d", got)
		}
	}
	load.end(t)
	for i, e := range []*envoytest.Envoy{w.envoy, w.caller} {
		if after, _ := e.Get(t.Context(), changes); after != before[i] {
			t.Errorf("trust changed a listener: before\n%safter\n%s", before[i], after)
		}
	}
}

// A load is calls of a caller's application that never end: over one connection, over
// connections of their own, and over a TCP connection that stays open.
type load struct {
	stop   context.CancelFunc
	done   chan error
	parts  int
	amount atomic.Int64
}

func (w *world) load(t *testing.T) *load {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	l := &load{stop: stop, done: make(chan error)}
	kept := w.app(t)
	fresh := &http.Client{Transport: &http.Transport{DialContext: w.client.Dial, DisableKeepAlives: true}, Timeout: 10 * time.Second}
	tcp, err := w.client.Dial(t.Context(), "tcp", "10.96.0.6:80")
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(tcp)
	if _, err := lines.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	get := func(c *http.Client) func() error {
		return func() error {
			r, err := c.Get("http://10.96.0.1/")
			if err != nil {
				return err
			}
			_ = r.Body.Close()
			if r.StatusCode != http.StatusOK {
				return fmt.Errorf("status %d", r.StatusCode)
			}
			return nil
		}
	}
	for _, call := range []func() error{get(kept), get(fresh), get(fresh), func() error {
		_, err := fmt.Fprintln(tcp, "x")
		if err == nil {
			_, err = lines.ReadString('\n')
		}
		return err
	}, func() error {
		_, err := w.banner(context.WithoutCancel(ctx), "10.96.0.6:80")
		return err
	}} {
		l.parts++
		go func() {
			for ctx.Err() == nil {
				if err := call(); err != nil {
					l.done <- fmt.Errorf("after %d calls of all kinds: %w", l.amount.Load(), err)
					return
				}
				l.amount.Add(1)
			}
			l.done <- nil
		}()
	}
	return l
}

// end ends the load, which must not have lost a call.
func (l *load) end(t *testing.T) {
	t.Helper()
	l.stop()
	for range l.parts {
		if err := <-l.done; err != nil {
			t.Errorf("a call was lost: %v", err)
		}
	}
	t.Logf("%d calls, none lost", l.amount.Load())
}

// TestNobodyIsTrustedWithoutRoots holds that without any root there is no secret,
// rather than one that trusts everybody.
func TestNobodyIsTrustedWithoutRoots(t *testing.T) {
	t.Parallel()
	for name, domains := range map[string][]mesh.TrustDomain{
		"one":  {{Name: trustDomain}},
		"two":  {{Name: trustDomain}, {Name: newDomain}},
		"junk": {{Name: trustDomain, Bundle: "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"}, {Name: newDomain}},
	} {
		if _, err := xds.NewCache().Set(seal(t, trusting(bookstore(""), domains...))); err == nil || !strings.Contains(err.Error(), "trust bundle") {
			t.Errorf("%s: got %v; Envoy has no way to trust nobody", name, err)
		}
	}
}
