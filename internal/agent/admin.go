package agent

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// An admin asks the admin interface of Envoy at its socket.
type admin struct{ socket string }

// maxAnswer bounds what is read of an answer that the agent itself looks at.
const maxAnswer = 1 << 20

// do sends a request and hands the answer to read, within ctx.
func (a admin) do(ctx context.Context, method, target string, read func(*http.Response) error) error {
	client := unixClient(a.socket)
	defer client.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, method, "http://envoy"+target, nil)
	if err != nil {
		return fmt.Errorf("make a request for Envoy's admin interface: %w", err)
	}
	response, err := client.Do(request)
	if err != nil {
		return fmt.Errorf("ask Envoy: %w", err)
	}
	defer func() { _ = response.Body.Close() }()
	return read(response)
}

func (a admin) text(ctx context.Context, method, target string) (string, error) {
	var text []byte
	err := a.do(ctx, method, target, func(r *http.Response) (err error) {
		if text, err = io.ReadAll(io.LimitReader(r.Body, maxAnswer)); err != nil {
			return fmt.Errorf("read Envoy's answer to %s: %w", target, err)
		}
		if r.StatusCode != http.StatusOK {
			return fmt.Errorf("ask Envoy for %s: %s: %s", target, r.Status, strings.TrimSpace(string(text)))
		}
		return nil
	})
	return string(text), err
}

// ready returns an error unless Envoy has initialised and has listeners.
func (a admin) ready(ctx context.Context) error {
	if _, err := a.text(ctx, http.MethodGet, "/ready"); err != nil {
		return err
	}
	// Envoy calls itself live when the first listeners were refused, too.
	n, err := a.sum(ctx, `^listener_manager\.total_listeners_active$`)
	if err == nil && n == 0 {
		err = errors.New("envoy has no listeners")
	}
	return err
}

// sum adds up the statistics whose names match a regular expression.
func (a admin) sum(ctx context.Context, regex string) (int64, error) {
	text, err := a.text(ctx, http.MethodGet, "/stats?filter="+url.QueryEscape(regex))
	if err != nil {
		return 0, err
	}
	var sum int64
	for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
		name, value, ok := strings.Cut(lines.Text(), ": ")
		n, err := strconv.ParseInt(value, 10, 64)
		if !ok || err != nil {
			return 0, fmt.Errorf("read Envoy's statistic %s: %q is not a number", name, value)
		}
		sum += n
	}
	return sum, nil
}

// startDrain tells callers to go elsewhere with each answer, and goes on
// accepting: some have not heard yet that this pod is leaving.
func (a admin) startDrain(ctx context.Context) error {
	_, err := a.text(ctx, http.MethodPost, "/drain_listeners?inboundonly&graceful&skip_exit")
	return err
}

// readable and writable are what Relay lets through: what shows, and what is
// undone easily. Nothing here ends Envoy, fails its health, or holds it up.
var (
	readable = []string{
		"/certs", "/clusters", "/config_dump", "/init_dump", "/listeners", "/memory", "/ready", "/runtime",
		"/server_info", "/stats", "/stats/prometheus",
	}
	writable = []string{"/logging", "/reset_counters"}
)

// Relay sends a request to the admin interface of the Envoy that an agent in the
// same container runs, and copies the answer. It refuses all but GET of what only
// shows something, and POST of /logging and /reset_counters. The socket is
// bootstrap.Files.AdminSocket.
func Relay(ctx context.Context, socket, method, target string, out io.Writer) error {
	u, err := url.ParseRequestURI(target)
	if err != nil || u.Host != "" {
		return fmt.Errorf("admin request %q: allowed is a path with an optional query", target)
	}
	allowed := map[string][]string{http.MethodGet: readable, http.MethodPost: writable}[method]
	if !slices.Contains(allowed, u.Path) {
		return fmt.Errorf("admin request %s %s: allowed are GET %s and POST %s",
			method, target, strings.Join(readable, " "), strings.Join(writable, " "))
	}
	return admin{socket: socket}.do(ctx, method, u.RequestURI(), func(r *http.Response) error {
		if _, err := io.Copy(out, r.Body); err != nil {
			return fmt.Errorf("read Envoy's answer: %w", err)
		}
		if r.StatusCode != http.StatusOK {
			return fmt.Errorf("ask Envoy for %s: %s", target, r.Status)
		}
		return nil
	})
}

// unixClient speaks HTTP to a socket of this container.
func unixClient(socket string) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
	}}
}
