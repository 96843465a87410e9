package why

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/outrigger-mesh/outrigger/e2e/envoybin"
)

// paths and what a proxy makes of them; empty is refused.
var paths = map[string]string{
	"/": "/", "/a": "/a", "/a/../b": "/b", "/a/./b": "/a/b", "/a//b": "/a/b", "//a": "/a", "/a///": "/a/",
	"/a/%2e%2e/b": "/b", "/a/%2E/b": "/a/b", "/a/%2e": "/a/", "/a/.%2e/": "/", "/a/b/..": "/a/", "/../../x": "/x",
	"/a/../..": "/", "/./": "/", "/a/...": "/a/...", "/a//../b": "/a/b", "/a/..//b": "/b",
	"/%41b": "/Ab", "/a%7eb": "/a~b", "/a%2Db": "/a-b", "/%5f%30": "/_0", "/a%20b": "/a%20b", "/a%3fb": "/a%3fb",
	"/%c3%a9": "/%c3%a9", "/a%21b": "/a%21b", "/a%7cb": "/a%7cb", "/a%25b": "/a%25b", "/a%0ab": "/a%0ab", "/a/%7f": "/a/%7f",
	"/a;b": "/a;b", "/a|b": "/a%7Cb", `/a"b`: "/a%22b", "/a<b>": "/a%3Cb%3E", "/a{b}": "/a%7Bb%7D", "/a`b": "/a%60b", "/a^b": "/a%5Eb",
	"/a'b": "/a'b", "/a[b]": "/a[b]", "/a%": "/a%", "/a%zz": "/a%zz", `/a\b`: "/a/b", `/a\..\b`: "/b", `/a\\b`: "/a/b",
	"/ok/..;/x": "/x", "/a/..;foo/b": "/b", "/a/.;x/b": "/a/b", "/a/..;": "/", "/a/.;": "/a/", "/a/;/b": "/a/;/b", "/a/...;/b": "/a/...;/b",
	"/a/%2e%2e;/b": "/a/..;/b", "/a/..%3b/b": "/a/..%3b/b", "/a;x/../b": "/b", "/%2E%2e;p/c/": "/..;p/c/",
	"/a%2Fb": "", "/a%5cb": "", "/a%00b": "", "/a/..%2fb": "", "/a%zz%2f": "",
}

func TestNormalise(t *testing.T) {
	for path, want := range paths {
		got, err := normalise(path)
		if got != want || errors.Is(err, errEscaped) != (want == "") {
			t.Errorf("normalise(%q) = %q, %v; want %q", path, got, err, want)
		}
	}
}

// The settings are those of every HTTP manager of the mesh, see package xds.
const echoPath = `
admin: {address: {pipe: {path: %q}}}
static_resources:
  listeners:
  - name: echo
    address: {pipe: {path: %q}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: echo
          normalize_path: true
          merge_slashes: true
          path_with_escaped_slashes_action: REJECT_REQUEST
          route_config:
            virtual_hosts:
            - name: echo
              domains: ["*"]
              routes:
              - match: {prefix: "/"}
                direct_response: {status: 200, body_format: {text_format_source: {inline_string: "%%PATH(NQ)%%"}}}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
`

// TestNormaliseAsEnvoy asks a real Envoy about the same paths.
func TestNormaliseAsEnvoy(t *testing.T) {
	envoy, err := envoybin.EnvoyBinary(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	socket := filepath.Join(dir, "echo.sock")
	cmd := exec.CommandContext(t.Context(), envoy, "--concurrency", "1", "-l", "error", "--disable-hot-restart",
		"--config-yaml", fmt.Sprintf(echoPath, filepath.Join(dir, "admin.sock"), socket))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	for path, want := range paths {
		status, got := echo(t, socket, path)
		if want == "" && status != http.StatusBadRequest || want != "" && got != want {
			t.Errorf("Envoy answers %d and %q for %q; want %q", status, got, path, want)
		}
	}
}

// echo sends a path as it is, which net/http would not, and waits until Envoy
// listens.
func echo(t *testing.T, socket, path string) (int, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	retry := time.NewTicker(20 * time.Millisecond)
	defer retry.Stop()
	conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	for err != nil {
		select {
		case <-ctx.Done():
			t.Fatalf("Envoy does not listen: %v", err)
		case <-retry.C:
		}
		conn, err = new(net.Dialer).DialContext(ctx, "unix", socket)
	}
	defer func() { _ = conn.Close() }()
	if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", path); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}
