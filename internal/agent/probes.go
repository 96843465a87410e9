package agent

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/outrigger-mesh/outrigger/bootstrap"
)

const (
	// maxProbeBody is what the kubelet, too, reads of an answer.
	maxProbeBody = 10 << 10
	// maxRedirects is the kubelet's.
	maxRedirects = 10
	// userAgent is sent to applications where the caller names none.
	userAgent = "kube-probe/outrigger"
)

// A prober answers GET of exactly the paths that it has a handler for, and 404
// otherwise: whoever can reach the pod can reach it.
type prober struct {
	handlers map[string]http.Handler
	address  netip.Addr
	dialer   net.Dialer
}

// newProber makes handlers for the probes of the pod at an address. It asks the
// pod at that address, as the kubelet would, and from an address that tells the
// redirect rules, and nobody else, that it is the agent: probes pass Envoy by.
func newProber(probes []bootstrap.Probe, pod netip.Addr) *prober {
	p := &prober{
		handlers: map[string]http.Handler{},
		address:  pod,
		dialer:   net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(source(pod), 0))},
	}
	for _, probe := range probes {
		p.handlers[probe.Path] = p.handler(probe)
	}
	return p
}

// source is 127.0.0.6 or ::6, as in package iptables.
func source(pod netip.Addr) netip.Addr {
	if pod.Is4() {
		return netip.AddrFrom4([4]byte{127, 0, 0, 6})
	}
	return netip.AddrFrom16([16]byte{15: 6})
}

// ServeHTTP compares paths as they are: cleaning would make two of one.
func (p *prober) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	handler, ok := p.handlers[r.URL.Path]
	if !ok {
		http.NotFound(w, r)
		return
	}
	if r.Method != http.MethodGet {
		w.Header().Set("Allow", http.MethodGet)
		http.Error(w, "only GET is allowed", http.StatusMethodNotAllowed)
		return
	}
	handler.ServeHTTP(w, r)
}

// handler asks the original target. The answer is only whether it went well:
// what the application says is for callers who may call it.
func (p *prober) handler(probe bootstrap.Probe) http.Handler {
	timeout := time.Duration(max(probe.TimeoutSeconds, 1)) * time.Second
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), timeout)
		defer cancel()
		var err error
		switch {
		case probe.HTTP != nil:
			err = p.http(ctx, probe.HTTP, r.UserAgent())
		case probe.TCP != nil:
			err = p.tcp(ctx, probe.TCP.Port)
		case probe.GRPC != nil:
			err = p.grpc(ctx, probe.GRPC)
		}
		var refused statusError
		switch {
		case err == nil:
			fmt.Fprintln(w, "ok")
		case errors.As(err, &refused):
			http.Error(w, err.Error(), int(refused))
		default:
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		}
	})
}

// A statusError is the status of an answer that is a failure. The kubelet shows
// it to the user, so it is passed on.
type statusError int

func (s statusError) Error() string { return fmt.Sprintf("the application answered %d", int(s)) }

func (p *prober) http(ctx context.Context, probe *bootstrap.HTTPProbe, caller string) error {
	request := p.request(ctx, probe, caller)
	client := &http.Client{
		CheckRedirect: followLocal,
		Transport: &http.Transport{
			DialContext:        p.dialer.DialContext,
			DisableCompression: true,
			DisableKeepAlives:  true,
			TLSClientConfig:    &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // as the kubelet: the probe has no name to verify
		},
	}
	response, err := client.Do(request)
	if err != nil {
		return fmt.Errorf("ask the application: %w", err)
	}
	defer func() { _ = response.Body.Close() }()
	// An application may think that a probe that reads nothing broke off.
	if _, err := io.Copy(io.Discard, io.LimitReader(response.Body, maxProbeBody)); err != nil {
		return fmt.Errorf("read the application's answer: %w", err)
	}
	if response.StatusCode < http.StatusOK || response.StatusCode >= http.StatusBadRequest {
		return statusError(response.StatusCode)
	}
	return nil
}

// request is the kubelet's: a path may bring a query, and what cannot be parsed
// is a path as it is. Whatever it is, only the pod is asked.
func (p *prober) request(ctx context.Context, probe *bootstrap.HTTPProbe, caller string) *http.Request {
	u, err := url.Parse(probe.Path)
	if err != nil {
		u = &url.URL{Path: probe.Path}
	}
	if u.Path != "" && u.Path[0] != '/' {
		u = &url.URL{Path: "/" + u.Path, RawQuery: u.RawQuery}
	}
	u.Scheme = "http"
	if probe.TLS {
		u.Scheme = "https"
	}
	u.Host = p.target(probe.Port)
	request := (&http.Request{Method: http.MethodGet, URL: u, Header: http.Header{}}).WithContext(ctx)
	setHeaders(request, probe.Headers, caller)
	return request
}

func (p *prober) target(port int32) string {
	return net.JoinHostPort(p.address.String(), strconv.Itoa(int(port)))
}

// setHeaders sends what the probe says, and what the kubelet adds unless the
// probe has its own word on it. An empty one of these is not sent at all.
func setHeaders(request *http.Request, headers []bootstrap.Header, caller string) {
	for _, h := range headers {
		request.Header.Add(h.Name, h.Value)
	}
	for name, value := range map[string]string{"User-Agent": cmp.Or(caller, userAgent), "Accept": "*/*"} {
		if _, ok := request.Header[name]; !ok {
			request.Header.Set(name, value)
		}
	}
	if request.Header.Get("Accept") == "" {
		request.Header.Del("Accept")
	}
	request.Host = request.Header.Get("Host")
}

// followLocal stays with the pod. A redirect elsewhere is an answer, and a good
// one, as it is to the kubelet.
func followLocal(request *http.Request, via []*http.Request) error {
	if request.URL.Hostname() != via[0].URL.Hostname() {
		return http.ErrUseLastResponse
	}
	if len(via) >= maxRedirects {
		return fmt.Errorf("stopped after %d redirects", maxRedirects)
	}
	return nil
}

func (p *prober) tcp(ctx context.Context, port int32) error {
	conn, err := p.dialer.DialContext(ctx, "tcp", p.target(port))
	if err != nil {
		return fmt.Errorf("connect to the application: %w", err)
	}
	_ = conn.Close() // it was accepted, which is all that was asked
	return nil
}

func (p *prober) grpc(ctx context.Context, probe *bootstrap.GRPCProbe) error {
	conn, err := grpc.NewClient("passthrough:///"+p.target(probe.Port),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithUserAgent(userAgent),
		grpc.WithNoProxy(),
		grpc.WithDisableServiceConfig(),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return p.dialer.DialContext(ctx, "tcp", address)
		}),
	)
	if err != nil {
		return fmt.Errorf("prepare the health check: %w", err)
	}
	defer func() { _ = conn.Close() }()
	response, err := healthv1.NewHealthClient(conn).Check(ctx, &healthv1.HealthCheckRequest{Service: probe.Service})
	if err != nil {
		return fmt.Errorf("check the application's health: %w", err)
	}
	if s := response.GetStatus(); s != healthv1.HealthCheckResponse_SERVING {
		return fmt.Errorf("the application's health is %s", s)
	}
	return nil
}
