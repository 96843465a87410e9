package proof

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
	"github.com/outrigger-mesh/outrigger/internal/xds"
	"github.com/outrigger-mesh/outrigger/internal/xds/envoytest"
)

// usualEnvoyMeshes is how many the real Envoys play where nobody says otherwise.
const usualEnvoyMeshes = 8

// A stage is the cast on a network of its own: a host with applications for each,
// and a real Envoy for those with a sidecar. It plays one cluster after another.
type stage struct {
	ca      *envoytest.CA
	newCA   *envoytest.CA // of newDomain
	cache   *xds.Cache
	hosts   map[string]*envoytest.Host // by the pod's namespace/name
	envoys  map[string]*envoytest.Envoy
	hostile *envoytest.Host
	names   map[account]tls.Certificate // what the hostile caller may present
}

func newStage(t *testing.T) *stage {
	t.Helper()
	s := &stage{
		ca: envoytest.NewCA(t), newCA: envoytest.NewCA(t), cache: xds.NewCache(),
		hosts: map[string]*envoytest.Host{}, envoys: map[string]*envoytest.Envoy{}, names: map[account]tls.Certificate{},
	}
	network := envoytest.NewNetwork(t)
	for _, a := range cast() {
		name := a.namespace + "/" + a.name
		addresses := []string{a.address + "/16"}
		if a.namespace == "out" {
			addresses = append(addresses, foreignAddress+"/32")
		}
		h := network.Host(t, addresses...)
		s.hosts[name] = h
		for _, port := range podPorts() {
			serve(t, h, fmt.Sprintf(":%d", port), fmt.Sprintf("%s:%d", name, port))
		}
		if a.namespace == "out" {
			serve(t, h, foreignAddress+":80", foreignName)
		}
		who := account{a.namespace, a.account}
		if a.account == "" {
			who.name = "default"
		}
		s.names[who] = s.certificate(t, who)
		if a.sidecar {
			h.Redirect(t)
			s.envoys[name] = envoytest.Start(t, envoytest.Pod{
				Namespace: a.namespace, Name: a.name, ServiceAccount: who.name, Network: h.Name, Certificate: s.authority(who).Secret(t, uri(who)),
			})
		}
	}
	s.hostile = network.Host(t, "10.1.0.99/16")
	return s
}

// foreignName is what answers at the Service outside the mesh.
const foreignName = "foreign"

// newDomain is what the mesh is moving to. Some of the cast have certificates of it
// already, and what may be called must not depend on that.
const newDomain = "mesh.new"

func moved(who account) bool { return who.namespace == "b" || who.name == "two" }

func uri(who account) string {
	domain := trustDomain
	if moved(who) {
		domain = newDomain
	}
	return mesh.Identity{Namespace: who.namespace, ServiceAccount: who.name}.URI(domain)
}

// authority signs for an account.
func (s *stage) authority(who account) *envoytest.CA {
	if moved(who) {
		return s.newCA
	}
	return s.ca
}

func (s *stage) certificate(t *testing.T, who account) tls.Certificate {
	t.Helper()
	chain, key := s.authority(who).Sign(t, uri(who))
	out, err := tls.X509KeyPair(chain, key)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// hello is what a caller says that speaks no HTTP.
const hello = "hello\n"

// serve runs an application that tells its name to HTTP and to a hello.
func serve(t *testing.T, h *envoytest.Host, address, name string) {
	t.Helper()
	l := h.Listen(t, address)
	answer := func(c net.Conn) {
		defer func() { _ = c.Close() }()
		in := bufio.NewReader(c)
		if start, err := in.Peek(len(hello)); err != nil || string(start) == hello {
			_, _ = fmt.Fprintln(c, name)
			return
		}
		for {
			r, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, r.Body)
			if _, err := fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(name), name); err != nil {
				return
			}
		}
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go answer(c)
		}
	}()
}

// play configures all Envoys for a cluster.
func (s *stage) play(t *testing.T, c cluster) {
	t.Helper()
	snap := c.build(s.ca.Bundle(), mesh.TrustDomain{Name: newDomain, Bundle: s.newCA.Bundle()})
	sets := map[string]*xds.Set{}
	for name, e := range s.envoys {
		ns, pod, _ := strings.Cut(name, "/")
		v, ok := snap.View(mesh.ProxyID{Namespace: ns, Pod: pod, UID: string(c.find(ns, pod).UID)})
		if !ok {
			t.Fatalf("pod %s has no View", name)
		}
		set, err := s.cache.Set(v)
		if err != nil {
			t.Fatalf("encode the View of %s: %v\n%s", name, err, c)
		}
		sets[name] = set
		e.Publish(set)
	}
	for name, e := range s.envoys {
		e.Await(t, sets[name])
	}
}

// A caller makes calls from one host, over connections that it keeps.
type caller struct {
	dial func(ctx context.Context, network, address string) (net.Conn, error)
	http *http.Transport
}

func newCaller(dial func(ctx context.Context, network, address string) (net.Conn, error)) caller {
	return caller{dial: dial, http: &http.Transport{DialContext: dial, DisableCompression: true}}
}

// A reply is what a caller hears.
type reply struct {
	status int    // of HTTP; zero is a connection that was closed, or said hello
	name   string // of the application that answered
	err    error
}

func (r reply) String() string {
	if r.name != "" {
		return "served by " + r.name
	}
	return fmt.Sprintf("refused with %d (%v)", r.status, r.err)
}

const callTimeout = 15 * time.Second

func (c caller) call(ctx context.Context, address string, r request) reply {
	ctx, stop := context.WithTimeout(ctx, callTimeout)
	defer stop()
	if r.tcp {
		return c.greet(ctx, address)
	}
	req, err := http.NewRequestWithContext(ctx, r.method, "http://"+address, http.NoBody)
	if err != nil {
		return reply{err: err}
	}
	req.URL.Opaque, req.Host = "//"+address+r.path, r.host
	for _, h := range r.headers {
		req.Header.Add(h[0], h[1])
	}
	resp, err := c.http.RoundTrip(req)
	if err != nil {
		return reply{err: err}
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	out := reply{status: resp.StatusCode, err: err}
	if out.status == http.StatusOK {
		out.name = string(body)
	}
	return out
}

func (c caller) greet(ctx context.Context, address string) reply {
	conn, err := c.dial(ctx, "tcp", address)
	if err != nil {
		return reply{err: err}
	}
	defer func() { _ = conn.Close() }()
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	}
	if _, err := io.WriteString(conn, hello); err != nil {
		return reply{err: err}
	}
	// One line: a proxy that refuses what is not HTTP closes only a second later.
	text, err := bufio.NewReader(conn).ReadString('\n')
	name := strings.TrimSpace(text)
	if strings.HasPrefix(name, "HTTP/") {
		return reply{err: errors.New(name)}
	}
	return reply{name: name, err: err}
}

// allows reports whether a reply is one of the ends that a call may come to.
func (o outcome) allows(r reply) bool {
	if r.name != "" {
		for e := range o {
			if e.what == served && (r.name == foreignName || r.name == fmt.Sprintf("%s:%d", e.pod, e.port)) {
				return true
			}
		}
		return false
	}
	switch r.status {
	case http.StatusForbidden, http.StatusBadRequest:
		return o.has(denied)
	case http.StatusServiceUnavailable, 0:
		return o.has(denied) || o.has(unavailable)
	}
	return false
}

// How long Envoy's threads may take to hear of a change that Envoy has acknowledged, on
// a busy machine, where a call may also just take too long.
const (
	settleTime  = 10 * time.Second
	settleCalls = 5
)

// settled calls until the reply is as wanted, or that has taken too long.
func settled(call func() reply, fits func(reply) bool) (reply, bool) {
	deadline := time.Now().Add(settleTime)
	for calls := 1; ; calls++ {
		got := call()
		if fits(got) {
			return got, true
		}
		if calls >= settleCalls && time.Now().After(deadline) {
			return got, false
		}
		wait := time.NewTimer(20 * time.Millisecond)
		<-wait.C
	}
}

// compare makes every call of a cluster, and returns how many there were and those
// that came to another end than the rules say, the first of each caller.
func (s *stage) compare(t *testing.T, c cluster) (calls int, faults []string) {
	t.Helper()
	s.play(t, c)
	p := newPolicy(c)
	var mu sync.Mutex
	var wait sync.WaitGroup
	run := func(ask func() (int, string)) {
		wait.Go(func() {
			n, fault := ask()
			mu.Lock()
			defer mu.Unlock()
			calls += n
			if fault != "" {
				faults = append(faults, fault)
			}
		})
	}
	for _, from := range c.Pods {
		run(func() (int, string) { return s.asCaller(t.Context(), p, from) })
	}
	for who, certificate := range s.names {
		run(func() (int, string) { return s.asHostile(t.Context(), p, who, certificate) })
	}
	run(func() (int, string) { return s.inPlainText(t.Context(), p) })
	wait.Wait()
	slices.Sort(faults)
	return calls, faults
}

// asCaller makes the calls of a pod, through its proxy if it has one.
func (s *stage) asCaller(ctx context.Context, p policy, from *corev1.Pod) (calls int, fault string) {
	c := newCaller(s.hosts[from.Namespace+"/"+from.Name].Dial)
	defer c.http.CloseIdleConnections()
	for _, to := range p.places() {
		address := fmt.Sprintf("%s:%d", to.address, to.port)
		if to.address == "" {
			address = fmt.Sprintf("%s:%d", to.Spec.ClusterIP, to.front.port.Port)
			if !p.meshed(from) {
				continue // nothing here plays kube-proxy
			}
		}
		for _, r := range to.requests() {
			if to.address != "" && !slices.Contains(podPorts(), to.port) && (!p.meshed(from) || to.address == from.Status.PodIP) {
				continue // no application is there
			}
			calls++
			want := p.expect(from, to, r)
			if !slices.Contains(podPorts(), to.port) && to.address != "" {
				want = nobodyThere(want)
			}
			if got, ok := settled(func() reply { return c.call(ctx, address, r) }, want.allows); !ok {
				return calls, fmt.Sprintf("%s/%s to %s: %s\nwas %s; by the rules it is %s", from.Namespace, from.Name, to, r, got, want)
			}
		}
	}
	return calls, ""
}

// nobodyThere is an outcome at a port that no application has.
func nobodyThere(o outcome) outcome {
	out := outcome{}
	for e, part := range o {
		if e.what == served {
			e = end{what: unavailable}
		}
		out[e] += part
	}
	return out
}

// asHostile goes past the proxy of a caller whose certificate it has, straight to
// every port of every pod. What servers let in then is what counts.
func (s *stage) asHostile(ctx context.Context, p policy, who account, certificate tls.Certificate) (calls int, fault string) {
	for _, asTCP := range []bool{false, true} {
		config := &tls.Config{Certificates: []tls.Certificate{certificate}, ServerName: "80.any.a.outrigger", InsecureSkipVerify: true}
		if !asTCP {
			config.NextProtos = []string{"http/1.1"}
		}
		c := newCaller(func(ctx context.Context, network, address string) (net.Conn, error) {
			raw, err := s.hostile.Dial(ctx, network, address)
			if err != nil {
				return nil, err
			}
			conn := tls.Client(raw, config)
			return conn, conn.HandshakeContext(ctx)
		})
		n, fault := s.knock(ctx, p, c, knock{as: who, asTCP: asTCP})
		c.http.CloseIdleConnections()
		calls += n
		if fault != "" {
			return calls, fault
		}
	}
	return calls, ""
}

func (s *stage) inPlainText(ctx context.Context, p policy) (calls int, fault string) {
	c := newCaller(s.hostile.Dial)
	defer c.http.CloseIdleConnections()
	return s.knock(ctx, p, c, knock{})
}

// knock makes calls to every port of every pod with a proxy.
func (s *stage) knock(ctx context.Context, p policy, c caller, k knock) (calls int, fault string) {
	for _, pod := range p.Pods {
		if !p.meshed(pod) {
			continue
		}
		for _, port := range podPorts() {
			all := requests()
			if _, served := p.speaks(pod, port); !served || k.asTCP {
				all = all[:2]
			}
			for _, r := range all {
				k.request = r
				calls++
				want := p.serves(pod, port, k)
				got, ok := settled(
					func() reply { return c.call(ctx, fmt.Sprintf("%s:%d", pod.Status.PodIP, port), r) },
					func(r reply) bool { return (r.name != "") == want },
				)
				if !ok {
					return calls, fmt.Sprintf("%s straight to %s/%s:%d (announced as TCP: %t): %s\nwas %s; by the rules it is let in: %t", k.as, pod.Namespace, pod.Name, port, k.asTCP, r, got, want)
				}
			}
		}
	}
	return calls, ""
}

// TestEnvoysFollowTheRules compares real Envoys with the written rules.
func TestEnvoysFollowTheRules(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if _, faults := s.compare(t, read(t, file)); len(faults) > 0 {
			t.Errorf("%s: %s", file, strings.Join(faults, "\n"))
		}
	}
	n := usualEnvoyMeshes
	if *meshes > 0 {
		n = *meshes
	}
	calls := 0
	for seed := *firstSeed; seed < *firstSeed+uint64(n); seed++ {
		c := newDice(seed, true).mesh()
		made, faults := s.compare(t, c)
		calls += made
		if len(faults) == 0 {
			continue
		}
		c = smallest(c, func(c cluster) bool { _, faults := s.compare(t, c); return len(faults) > 0 })
		_, fewer := s.compare(t, c)
		t.Fatalf("seed %d: %s\nin the smallest such mesh:\n%s\n%s", seed, strings.Join(faults, "\n"), strings.Join(fewer, "\n"), c)
	}
	t.Logf("%d meshes from seed %d, %d calls", n, *firstSeed, calls)
}
