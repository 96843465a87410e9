package xds_test

import (
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
	"github.com/outrigger-mesh/outrigger/internal/xds/envoytest"
)

// TestInboundGroups holds that a namespace, or everyone, can be a caller of HTTP and
// of TCP, and that no neighbour with a longer or a shorter name is taken for it.
func TestInboundGroups(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	serveHTTP(t, s.host, ":8080", "http")
	serveHTTP(t, s.host, ":8081", "auto")
	serveBanner(t, s.host, ":3306", "tcp first")
	shop := []mesh.Group{"shop"}
	ports := func(callers []mesh.Identity, groups []mesh.Group) mesh.View {
		var rules []mesh.Rule
		if len(callers)+len(groups) > 0 {
			rules = []mesh.Rule{{Source: "Service books/store allow-from", Callers: callers, Groups: groups}}
		}
		return s.view(
			mesh.InboundPort{Port: 3306, Protocol: mesh.TCP, Callers: callers, Groups: groups},
			mesh.InboundPort{Port: 8080, Protocol: mesh.HTTP, Rules: rules},
			mesh.InboundPort{Port: 8081, Rules: rules, Callers: callers, Groups: groups},
		)
	}
	const changes = "/stats?filter=listener_manager.listener_(modified|in_place_updated|added)"
	apply(t, s.envoy, ports(nil, nil))
	before, _ := s.envoy.Get(t.Context(), changes)
	for _, step := range []struct {
		reason   string
		callers  []mesh.Identity
		groups   []mesh.Group
		in, out  []mesh.Identity
		outsider bool // a name of another trust domain that looks alike
	}{
		{"nobody", nil, nil, nil, []mesh.Identity{id("shop", "web"), buyer}, false},
		{"a namespace", nil, shop, []mesh.Identity{id("shop", "web"), id("shop", "x")}, []mesh.Identity{id("shop2", "web"), id("sho", "web"), id("a", "shop"), buyer}, true},
		{"a namespace and an account", []mesh.Identity{buyer}, shop, []mesh.Identity{buyer, id("shop", "web")}, []mesh.Identity{thief, id("shop2", "web")}, true},
		{"everyone", nil, []mesh.Group{mesh.Everyone}, []mesh.Identity{buyer, thief, id("shop2", "web")}, nil, true},
		{"nobody again", nil, nil, nil, []mesh.Identity{id("shop", "web"), buyer, thief}, false},
	} {
		apply(t, s.envoy, ports(step.callers, step.groups))
		for _, as := range step.in {
			s.mayAll(t, step.reason, as, true)
		}
		for _, as := range step.out {
			s.mayAll(t, step.reason, as, false)
		}
		if step.outsider {
			if c, err := s.dialAs(t.Context(), t, "spiffe://cluster.local.evil/ns/shop/sa/web", 3306); err == nil {
				if got, err := line(c); err == nil {
					t.Errorf("%s: a name of another trust domain was answered %q", step.reason, got)
				}
			}
		}
	}
	if after, _ := s.envoy.Get(t.Context(), changes); after != before {
		t.Errorf("a group changed a listener: before\n%safter\n%s", before, after)
	}
}

// mayAll waits until an identity may, or may not, call HTTP, TCP and both at a sniffed
// port.
func (s *server) mayAll(t *testing.T, reason string, as mesh.Identity, want bool) {
	t.Helper()
	envoytest.Eventually(t, func() error {
		for port, name := range map[int]string{8080: "http", 8081: "auto"} {
			got := do(t, s.client(t, as, port), "POST", "https://store/any?thing")
			if (got.code == http.StatusOK && strings.HasPrefix(got.body, name)) != want || !want && got.code != http.StatusForbidden {
				return fmt.Errorf("%s: %s at port %d: %d %s", reason, as, port, got.code, got.body)
			}
		}
		for _, port := range []int{3306, 8081} {
			if got, err := s.talk(t, as, port); (err == nil) != want {
				return fmt.Errorf("%s: %s over TCP at port %d: %q, %w", reason, as, port, got, err)
			}
		}
		return nil
	})
}

// talk connects as an identity, without a word of HTTP in the handshake, says a line
// and returns the answer.
func (s *server) talk(t *testing.T, as mesh.Identity, port int) (string, error) {
	t.Helper()
	c, err := s.dial(t.Context(), t, as, port)
	if err != nil {
		return "", err
	}
	defer func() { _ = c.Close() }()
	_, _ = fmt.Fprint(c, "GET / HTTP/1.0\r\n\r\n")
	return line(c)
}

// TestInboundModeOfEachPort holds that each port of a pod has a mode and takes plain
// text for itself: no mode changes a listener, and taking plain text in changes the
// chains of its port only.
func TestInboundModeOfEachPort(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	serveHTTP(t, s.host, ":8080", "http")
	serveHTTP(t, s.host, ":8090", "http")
	serveBanner(t, s.host, ":3306", "tcp first")
	serveBanner(t, s.host, ":3307", "tcp first")
	type setting struct {
		mode  mesh.Mode
		plain bool
	}
	strict, open, closed := setting{mode: mesh.Permissive}, setting{mesh.Permissive, true}, setting{}
	ports := func(of map[uint16]setting) mesh.View {
		var out []mesh.InboundPort
		for _, p := range []uint16{3306, 3307, 8080, 8090} {
			protocol := mesh.TCP
			if p >= 8080 {
				protocol = mesh.HTTP
			}
			out = append(out, mesh.InboundPort{Port: p, Protocol: protocol, Mode: of[p].mode, ModeBy: "Service books/x", PlainText: of[p].plain})
		}
		return s.view(out...)
	}
	watch := func(reason string, of map[uint16]setting) {
		t.Helper()
		apply(t, s.envoy, ports(of))
		for port, want := range of {
			envoytest.Eventually(t, func() error {
				member, plain := s.answers(t, port, true), s.answers(t, port, false)
				if member != (want.mode == mesh.Permissive) || plain != want.plain {
					return fmt.Errorf("%s: port %d (%+v): a member is let in: %v, plain text: %v", reason, port, want, member, plain)
				}
				return nil
			})
		}
	}
	watch("strict", map[uint16]setting{3306: strict, 3307: strict, 8080: strict, 8090: strict})
	kept, err := s.dial(t.Context(), t, buyer, 3307)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := line(kept); got != "tcp first" {
		t.Fatalf("got %q, %v", got, err)
	}
	stat := func(name string) string {
		text, _ := s.envoy.Get(t.Context(), "/stats?filter=listener_manager."+name)
		return text
	}
	before := stat("listener_(modified|in_place_updated|added)")
	watch("two ports enforced", map[uint16]setting{3306: closed, 3307: strict, 8080: closed, 8090: strict})
	watch("the others", map[uint16]setting{3306: strict, 3307: closed, 8080: strict, 8090: closed})
	if after := stat("listener_(modified|in_place_updated|added)"); after != before {
		t.Errorf("the mode of a port changed a listener: before\n%safter\n%s", before, after)
	}
	watch("plain text at the first TCP port", map[uint16]setting{3306: open, 3307: strict, 8080: strict, 8090: strict})
	watch("plain text at the first HTTP port", map[uint16]setting{3306: strict, 3307: strict, 8080: open, 8090: strict})
	// What is replaced in place lets the chains of other ports be.
	if got := stat("listener_(modified|in_place_updated)"); !strings.Contains(got, "in_place_updated: 2\n") {
		t.Errorf("taking plain text in replaced the listener:\n%s", got)
	}
	if got := stat("total_(filter_chains|listeners)_draining"); !strings.Contains(got, "total_filter_chains_draining: 1\n") || !strings.Contains(got, "total_listeners_draining: 0\n") {
		t.Errorf("more drains than the chain that let plain text into port 3306:\n%s", got)
	}
	_, _ = fmt.Fprintln(kept, "still there")
	if got, err := line(kept); got != "still there" {
		t.Errorf("the open connection of another port got %q, %v", got, err)
	}
}

// answers reports whether the application at a port answers a member of the mesh, or
// a client that speaks plain text.
func (s *server) answers(t *testing.T, port uint16, member bool) bool {
	t.Helper()
	var c net.Conn
	var err error
	if member {
		alpn := []string{}
		if port >= 8080 {
			alpn = []string{"http/1.1"}
		}
		c, err = s.dial(t.Context(), t, thief, int(port), alpn...)
	} else {
		c, err = s.peer.Dial(t.Context(), "tcp", fmt.Sprintf("10.1.0.2:%d", port))
	}
	if err != nil {
		return false
	}
	defer func() { _ = c.Close() }()
	if port >= 8080 {
		_, _ = fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: store\r\nConnection: close\r\n\r\n")
	}
	got, err := line(c)
	return err == nil && (got == "tcp first" || got == "HTTP/1.1 200 OK")
}

// TestOutboundRefused holds that a caller which wants mutual TLS only reaches no pod
// without a proxy by its address, although it may leave the mesh.
func TestOutboundRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	serveHTTP(t, w.outside, ":8080", "outside")
	serveBanner(t, w.outside, ":2525", "smtp")
	v := w.calls(true)
	apply(t, w.caller, v)
	may := func(want bool) {
		t.Helper()
		envoytest.Eventually(t, func() error {
			got := do(t, w.app(t), "GET", "http://10.1.9.9:8080/")
			if (got.code == 200) != want || !want && got.code != 403 {
				return fmt.Errorf("HTTP: %d %s", got.code, got.body)
			}
			if !want && !strings.Contains(got.body, "books/buyer may not call 10.1.9.9:8080 (10.1.9.9:8080): enforced mode, or strict mutual TLS") {
				t.Errorf("the denial says %s", got.body)
			}
			if got, err := w.banner(t.Context(), "10.1.9.9:2525"); (got == "smtp") != want {
				return fmt.Errorf("TCP: %q, %w", got, err)
			}
			return nil
		})
	}
	may(true)
	kept, err := w.client.Dial(t.Context(), "tcp", "10.1.9.10:2525")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := line(kept); got != "smtp" {
		t.Fatalf("got %q, %v", got, err)
	}
	v.Outbound.MutualTLSOnly = true
	v.Outbound.Refused = addrs("10.1.9.9")
	apply(t, w.caller, v)
	may(false)
	if got := do(t, w.app(t), "GET", "http://10.1.9.10:8080/"); got.code != 200 {
		t.Errorf("another address is egress still: %d %s", got.code, got.body)
	}
	if got := do(t, w.app(t), "GET", "http://10.96.0.99:8080/"); got.code != 403 {
		t.Errorf("a ClusterIP that may not be called: %d %s", got.code, got.body)
	}
	v.Outbound.Refused = nil
	apply(t, w.caller, v)
	may(true)
	_, _ = fmt.Fprintln(kept, "still there")
	if got, err := line(kept); got != "still there" {
		t.Errorf("the open connection of another address got %q, %v", got, err)
	}
	stats, _ := w.caller.Get(t.Context(), "/stats?filter=listener_manager.(listener_in_place_updated|total_listeners_draining)")
	// Twice the outbound listener, and once the dead end, which says why.
	if !strings.Contains(stats, "listener_in_place_updated: 3\n") || !strings.Contains(stats, "total_listeners_draining: 0\n") {
		t.Errorf("refusing addresses replaced the listener:\n%s", stats)
	}
}
