package why

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

// A Question is a call that somebody asks about.
type Question struct {
	// Caller is NAMESPACE/POD, POD, deploy/NAME, sa/NAME or a SPIFFE ID.
	Caller string
	// Namespace is where a caller that names none is looked for.
	Namespace string
	// Method is GET where it is empty.
	Method string
	// URL is what is called, with the scheme http, https or tcp; without one it is
	// http.
	URL string
	// Headers are "name: value".
	Headers []string
}

// call is a Question while it is answered.
type call struct {
	World
	caller Caller
	pod    *corev1.Pod // may be nil
	out    *mesh.Outbound
	scheme string
	host   string
	port   uint16
	asked  asked // as the caller's proxy compares it
	seen   asked // as the server's does, which reads what the caller's made of it
	target target
	round  bool // it goes round the caller's proxy
	answer CallAnswer
	// protocols is what ports speak by the word that holds; made when it is asked.
	protocols map[identityPort]mesh.Protocol
}

// Call answers a Question. The error says why it cannot be answered.
func (w World) Call(q Question) (CallAnswer, error) {
	c := &call{World: w}
	var err error
	if c.caller, c.pod, err = w.caller(q.Caller, q.Namespace); err != nil {
		return CallAnswer{}, err
	}
	if err := c.read(q); err != nil {
		return CallAnswer{}, err
	}
	c.answer.Caller = c.caller
	c.answer.Request = Request{Scheme: c.scheme, Authority: c.asked.headers[":authority"]}
	c.answer.Destination = Destination{Host: c.host, Port: c.port}
	if c.host == "localhost" || c.isOwn(c.host) {
		c.allow(OwnPod, "The call stays inside the pod and meets no proxy.")
		return c.finish(), nil
	}
	if c.target, err = w.resolve(c.host, c.caller.Identity.Namespace, c.port); err != nil {
		return CallAnswer{}, err
	}
	if c.target.alias != "" {
		c.note("%s is an ExternalName for %s.", c.host, c.target.alias)
	}
	for _, a := range c.target.addresses {
		c.answer.Destination.Addresses = append(c.answer.Destination.Addresses, a.String())
	}
	c.decide()
	return c.finish(), nil
}

// isOwn reports whether host is loopback or the caller's own pod, which it calls
// without a proxy.
func (c *call) isOwn(host string) bool {
	a, err := netip.ParseAddr(host)
	if err != nil {
		return false
	}
	return a.Unmap().IsLoopback() || c.pod != nil && !c.pod.Spec.HostNetwork && c.podAt(a.Unmap()) == c.pod
}

// read takes the URL and the headers apart.
func (c *call) read(q Question) error {
	text := q.URL
	if !strings.Contains(text, "://") {
		text = "http://" + text
	}
	scheme, rest, _ := strings.Cut(text, "://")
	defaults := map[string]uint16{"http": 80, "ws": 80, "grpc": 80, "https": 443, "wss": 443, "tcp": 0}
	port, known := defaults[scheme]
	if !known {
		return fmt.Errorf("URL %q: the scheme %s is not known; use http, https or tcp", q.URL, scheme)
	}
	// The path is compared as it is written, so net/url gets the authority only.
	authority, path := rest, "/"
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		authority, path = rest[:i], rest[i:]
	}
	u, err := url.Parse("http://" + authority)
	if err != nil || u.Hostname() == "" || u.User != nil {
		return fmt.Errorf("URL %q: %q is not a host and a port", q.URL, authority)
	}
	if text := u.Port(); text != "" {
		n, err := strconv.ParseUint(text, 10, 16)
		if err != nil || n == 0 {
			return fmt.Errorf("URL %q: %q is not a port; 1 to 65535 are allowed", q.URL, text)
		}
		port = uint16(n)
	}
	if port == 0 {
		return fmt.Errorf("URL %q: name the port, as in tcp://%s:5432", q.URL, u.Hostname())
	}
	c.scheme, c.host, c.port = scheme, u.Hostname(), port
	path, _, _ = strings.Cut(path, "#")
	path, _, _ = strings.Cut(path, "?")
	if path == "" {
		path = "/"
	}
	c.asked = asked{method: q.Method, path: path, headers: map[string]string{":authority": authority}}
	if c.asked.method == "" {
		c.asked.method = "GET"
	}
	err = c.readHeaders(q.Headers)
	c.seen = c.asked
	return err
}

func (c *call) readHeaders(headers []string) error {
	for _, h := range headers {
		name, value, ok := strings.Cut(h, ":")
		name = strings.ToLower(strings.TrimSpace(name))
		if !ok || name == "" {
			return fmt.Errorf("header %q: write it as \"name: value\"", h)
		}
		value = strings.TrimSpace(value)
		if name == "host" {
			c.asked.headers[":authority"] = value
			continue
		}
		if before, ok := c.asked.headers[name]; ok {
			value = before + "," + value
		}
		c.asked.headers[name] = value
	}
	return nil
}

// isHTTP reports whether the application speaks HTTP in the clear, so that a
// proxy can read it.
func (c *call) isHTTP() bool { return c.scheme == "http" || c.scheme == "ws" || c.scheme == "grpc" }

// decide finds out which of the proxies the call meets, and asks them.
func (c *call) decide() {
	first := netip.Addr{}
	if len(c.target.addresses) > 0 {
		first = c.target.addresses[0]
	}
	c.name(first)
	if c.pod != nil && !c.caller.Proxy {
		c.note("Pod %s has no proxy, so it calls in plain text; outrigger why pod %s says why.", c.caller.Pod, c.caller.Pod)
		c.plain(c.target.addresses)
		return
	}
	if !c.caller.Proxy {
		c.note("Namespace %s is not in the mesh, so its pods have no proxies and call in plain text.", c.caller.Identity.Namespace)
		c.plain(c.target.addresses)
		return
	}
	if c.pod != nil {
		if round := c.goesRound(c.pod, first, c.port); round != "" {
			c.note("The call goes round the caller's proxy: %s.", round)
			c.round = true
			c.plain(c.target.addresses)
			return
		}
	}
	c.out = c.outbound()
	if c.isHTTP() {
		path, err := normalise(c.asked.path)
		if err == nil {
			c.asked.path = path
			c.seen = c.asked
			c.seen.path, _ = normalise(path) // nothing is left to refuse
		} else if errors.Is(err, errEscaped) && c.readsHTTP(first) {
			c.deny(Client, EscapedSlash, "The caller's proxy answers 400: %v.", err)
			return
		}
	}
	switch bundles := c.bundles(); {
	case len(bundles) > 0:
		c.throughBundles(bundles)
		c.settings(bundles[0].bundle)
	default:
		c.withoutBundle(first)
	}
}

// outbound returns where the caller's proxy may call: its View's, or the one that
// a workload of its identity would have.
func (c *call) outbound() *mesh.Outbound {
	if c.pod != nil {
		if v, ok := c.Snapshot.View(proxyID(c.pod)); ok {
			return v.Outbound
		}
	}
	return c.Snapshot.Outbound(c.caller.Identity)
}

// name fills in which Service port is called.
func (c *call) name(first netip.Addr) {
	if m := c.modelled(first); m != nil {
		c.answer.Destination.Service = m.Name.String()
		c.answer.Destination.Protocol = protocolName(m.Protocol)
	}
}

func protocolName(p mesh.Protocol) string {
	if p == mesh.Auto {
		return "sniffed"
	}
	return string(p)
}

// modelled returns the Service port that the target means, or nil.
func (c *call) modelled(a netip.Addr) *mesh.Service {
	found := c.services(func(m *mesh.Service) bool {
		if s := c.target.service; s != nil {
			if m.Name.Namespace != s.Namespace || m.Name.Name != s.Name {
				return false
			}
			return m.Name.Port == c.port || m.Headless && slices.ContainsFunc(m.Endpoints, func(e mesh.Endpoint) bool { return e.Port == c.port })
		}
		return m.Headless && endpointAt(m.Endpoints, a, c.port) != nil
	})
	if len(found) == 0 {
		return nil
	}
	return found[0]
}

func endpointAt(endpoints []mesh.Endpoint, a netip.Addr, port uint16) *mesh.Endpoint {
	for i := range endpoints {
		if endpoints[i].Address == a && endpoints[i].Port == port {
			return &endpoints[i]
		}
	}
	return nil
}

// A way is a bundle that takes the call, and for a headless one the endpoint that
// was dialled.
type way struct {
	bundle  *mesh.Bundle
	dialled *mesh.Endpoint
}

// bundles returns the ways that the caller's proxy has for the target's addresses,
// each Service port once unless it is headless. As in Envoy, a ClusterIP goes
// before endpoints, and then the first by name.
func (c *call) bundles() []way {
	var out []way
	for _, a := range c.target.addresses {
		w, ok := c.bundleAt(a)
		if ok && !slices.ContainsFunc(out, func(v way) bool { return v.bundle == w.bundle && v.dialled == w.dialled }) {
			out = append(out, w)
		}
	}
	return out
}

func (c *call) bundleAt(a netip.Addr) (way, bool) {
	for _, b := range c.out.Bundles {
		if !b.Headless && b.Name.Port == c.port && slices.Contains(b.Addresses, a) {
			return way{bundle: b}, true
		}
	}
	for _, b := range c.out.Bundles {
		if e := endpointAt(b.Endpoints, a, c.port); b.Headless && e != nil {
			return way{bundle: b, dialled: e}, true
		}
	}
	return way{}, false
}

// escaped reports whether a proxy that reads the path refuses it.
func (c *call) escaped() bool {
	_, err := normalise(c.seen.path)
	return err != nil
}

// readsHTTP reports whether a proxy of the caller reads the call's path.
func (c *call) readsHTTP(a netip.Addr) bool {
	w, ok := c.bundleAt(a)
	return ok && !w.bundle.Passthrough && w.bundle.Protocol != mesh.TCP
}

func (c *call) note(format string, args ...any) {
	c.answer.Notes = append(c.answer.Notes, fmt.Sprintf(format, args...))
}

func (c *call) allow(r Reason, format string, args ...any) {
	c.answer.Verdict, c.answer.Reason, c.answer.Message = Allowed, r, fmt.Sprintf(format, args...)
}

func (c *call) deny(s Side, r Reason, format string, args ...any) {
	c.answer.Verdict, c.answer.Side, c.answer.Reason, c.answer.Message = Denied, s, r, fmt.Sprintf(format, args...)
}

// finish fills in what is known only now.
func (c *call) finish() CallAnswer {
	if c.isHTTP() {
		c.answer.Request.Method, c.answer.Request.Path = c.seen.method, c.seen.path
	}
	return c.answer
}
