package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/outrigger-mesh/outrigger/bootstrap"
)

// serveApp starts an application that answers 200, except at /slow, where it
// waits until release is closed.
func (w *world) serveApp() (release chan struct{}) {
	w.t.Helper()
	release = make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			select {
			case <-release:
			case <-r.Context().Done():
				return
			}
		}
		fmt.Fprint(rw, "hello")
	}))
	w.t.Cleanup(server.Close)
	w.app = server.Listener.Addr().String()
	return release
}

func TestSidecar(t *testing.T) {
	w := newWorld(t)
	w.serveApp()
	w.serve()
	_, port, err := net.SplitHostPort(w.app)
	if err != nil {
		t.Fatal(err)
	}
	appPort, err := strconv.ParseInt(port, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	s := w.start("", func(s *bootstrap.Settings) {
		s.Probes = []bootstrap.Probe{{Path: "/probe/app/liveness", HTTP: &bootstrap.HTTPProbe{Port: int32(appPort), Path: "/"}}}
	})
	s.ready()

	t.Run("traffic", func(t *testing.T) {
		if code, text, err := s.get(15003, "/"); code != http.StatusOK || text != "hello" {
			t.Errorf("through Envoy: got %d %q %v; want the application's answer", code, text, err)
		}
	})
	t.Run("metrics", func(t *testing.T) {
		for _, path := range []string{"/metrics", "/stats/prometheus"} {
			if code, text, err := s.get(15010, path); code != http.StatusOK || !strings.Contains(text, "\nenvoy_server_live{} 1\n") {
				t.Errorf("%s: got %d %v; want Envoy's metrics in\n%s", path, code, err, text)
			}
		}
		if code, _, err := s.get(15010, "/stats"); code != http.StatusNotFound {
			t.Errorf("Envoy's admin interface: got %d, %v; want nothing but metrics", code, err)
		}
	})
	t.Run("identity", func(t *testing.T) {
		w.mu.Lock()
		defer w.mu.Unlock()
		want := []string{"bookstore/store-1/u-1 " + workloadID + " u-1"}
		if !slices.Equal(w.nodes, want) {
			t.Errorf("the stream was opened by %q; want %q", w.nodes, want)
		}
	})
	t.Run("files", func(t *testing.T) {
		for name, want := range map[string]os.FileMode{
			"sds": os.ModeDir | 0o700, "sds/certificate.yaml": 0o600, "sds/trust.yaml": 0o600,
			"envoy.sock": os.ModeSocket | 0o600, "agent.sock": os.ModeSocket | 0o600, "envoy.json": 0o600,
		} {
			info, err := os.Stat(filepath.Join(w.dir, "state", name))
			if err != nil || info.Mode() != want {
				t.Errorf("%s: got %v, %v; want mode %v", name, info, err, want)
			}
		}
	})
	t.Run("no secrets in the log", func(t *testing.T) {
		log := s.log.String()
		if strings.Contains(log, "PRIVATE KEY") || strings.Contains(log, "Bearer") {
			t.Error("the log has the key or the token")
		}
	})
	t.Run("log", func(t *testing.T) {
		for line := range strings.Lines(s.log.String()) {
			var fields map[string]any
			if err := json.Unmarshal([]byte(line), &fields); err != nil || fields["msg"] == nil || fields["level"] == nil || fields["time"] == nil {
				t.Errorf("not a JSON line with msg, level and time: %s", line)
			}
		}
	})
	t.Run("port", func(t *testing.T) {
		for path, want := range map[string]int{
			"/probe/app/liveness": 200, "/probe/app/liveness/": 404, "//probe/app/liveness": 404, "/probe/app/%6civeness": 200,
			"/probe/app": 404, "/": 404, "/drain": 404, "/stats": 404, "/quitquitquit": 404, "/ready/": 404,
		} {
			if code, _, err := s.get(15020, path); code != want {
				t.Errorf("%s: got %d %v; want %d", path, code, err, want)
			}
		}
		response, err := http.Post(fmt.Sprintf("http://%s:15020/ready", w.ip), "", nil)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		if response.StatusCode != http.StatusMethodNotAllowed {
			t.Errorf("POST: got %d; want 405", response.StatusCode)
		}
	})
	t.Run("admin", func(t *testing.T) { checkAdmin(t, s) })
	t.Run("no key in a dump", func(t *testing.T) {
		out, err := s.commandOf("", "admin", "GET", "/config_dump?include_eds").Output()
		if err != nil || !bytes.Contains(out, []byte("SecretsConfigDump")) {
			t.Fatalf("got %v\n%s\nwant a dump with secrets", err, out)
		}
		if bytes.Contains(out, []byte("PRIVATE KEY")) || bytes.Contains(out, []byte(base64.StdEncoding.EncodeToString([]byte("-----BEGIN PRIV")))) {
			t.Error("the dump has the key")
		}
	})
}

func checkAdmin(t *testing.T, s *sidecar) {
	tests := map[string]struct {
		reason       string
		method, path string
		want         string // in the output; empty: refused
	}{
		"config":   {"it only shows", "GET", "/config_dump?resource=dynamic_listeners", "inbound"},
		"stats":    {"the statistics that prove TLS are admitted", "GET", "/stats?filter=control_plane", "control_plane.connected_state: 1"},
		"logging":  {"the level can be changed", "POST", "/logging?config=debug", "config: debug"},
		"quit":     {"it would end Envoy", "POST", "/quitquitquit", ""},
		"health":   {"it would take the pod out of service", "POST", "/healthcheck/fail", ""},
		"drain":    {"it would end all connections", "POST", "/drain_listeners", ""},
		"runtime":  {"nothing is changed past the mesh", "POST", "/runtime_modify?a=b", ""},
		"get":      {"the method counts, too", "GET", "/reset_counters", ""},
		"dots":     {"paths are compared as they are", "POST", "/logging/../quitquitquit", ""},
		"absolute": {"another host is no path", "GET", "http://example.org/stats", ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			out, err := s.commandOf("", "admin", test.method, test.path).CombinedOutput()
			if test.want == "" {
				var exit *exec.ExitError
				if !errors.As(err, &exit) || exit.ExitCode() != exitFailure || !strings.Contains(string(out), "allowed") {
					t.Errorf("%s: got %v\n%s\nwant a refusal", test.reason, err, out)
				}
			} else if err != nil || !strings.Contains(string(out), test.want) {
				t.Errorf("%s: got %v\n%s\nwant %q", test.reason, err, out, test.want)
			}
		})
	}
}

func TestControlPlaneComesLate(t *testing.T) {
	w := newWorld(t)
	w.serveApp()
	s := w.start("", nil)
	s.logs("no certificate")
	if code, text, err := s.get(15020, "/ready"); code != http.StatusServiceUnavailable || !strings.Contains(text, "no certificate yet") {
		t.Errorf("before the first certificate: got %d %q %v; want 503", code, text, err)
	}
	w.serve()
	s.ready()
}

// TestNoListeners has an Envoy that calls itself live, although it can do nothing.
func TestNoListeners(t *testing.T) {
	w := newWorld(t)
	w.serve()
	s := w.start("", nil)
	// The statistic server.live is 1 before Envoy is, and the agent asks Envoy first.
	s.eventually("Envoy is live, and the agent says that it has no listeners", func() error {
		code, text, err := s.get(15020, "/ready")
		if err != nil {
			return err
		}
		if code != http.StatusServiceUnavailable {
			t.Errorf("got %d %q; want 503", code, text)
		}
		if !strings.Contains(text, "envoy has no listeners") {
			return fmt.Errorf("got %d %q", code, text)
		}
		return nil
	})
}

func (s *sidecar) stat(name, want string) error {
	out, err := s.commandOf("", "admin", "GET", "/stats?filter=^"+strings.ReplaceAll(name, ".", `\.`)+"$").CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	if got := strings.TrimSpace(string(out)); got != name+": "+want {
		return fmt.Errorf("it is %q", got)
	}
	return nil
}

func TestEnvoyDies(t *testing.T) {
	w := newWorld(t)
	w.serveApp()
	w.serve()
	s := w.start("", nil)
	s.ready()
	match := regexp.MustCompile(`"msg":"envoy started".*"pid":(\d+)`).FindStringSubmatch(s.log.String())
	if match == nil {
		t.Fatal("the log does not name Envoy's process")
	}
	pid, err := strconv.Atoi(match[1])
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if code := s.exit(); code != 128+9 {
		t.Errorf("got status %d; want Envoy's, 137", code)
	}
}

// TestCannotRun holds that what is wrong with the container ends it, with a word.
func TestCannotRun(t *testing.T) {
	w := newWorld(t)
	w.serve()
	settings, err := json.Marshal(bootstrap.Settings{
		Mesh: "outrigger", TrustDomain: "cluster.local", ControlPlane: w.address, ControlPlaneID: controlPlaneID,
	})
	if err != nil {
		t.Fatal(err)
	}
	taken := freeAddress(t)
	l, err := net.Listen("tcp", taken)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	tests := map[string]struct {
		args []string
		env  string
		want string
	}{
		"no Envoy":    {[]string{"-envoy", "/nonexistent", "-address", w.ip + ":15020", "-metrics-address", w.ip + ":15010"}, "", "start Envoy"},
		"port taken":  {[]string{"-address", taken}, "", "listen for probes"},
		"no identity": {[]string{"-address", w.ip + ":15020"}, bootstrap.EnvPodUID + "=", "pod uid is empty"},
		"no address":  {[]string{"-address", w.ip + ":15020"}, bootstrap.EnvPodIPs + "=", "POD_IPS"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			command := w.commandOf("", append(test.args, "proxy", string(settings))...)
			command.Env = append(command.Env, test.env)
			out, err := command.CombinedOutput()
			if command.ProcessState.ExitCode() <= 0 || !strings.Contains(string(out), test.want) {
				t.Errorf("got %v\n%s\nwant a failure that says %q", err, out, test.want)
			}
		})
	}
}

func TestCommandLine(t *testing.T) {
	w := newWorld(t)
	tests := map[string]struct {
		reason string
		args   []string
		want   int
		text   string
	}{
		"nothing":      {"there is no default", nil, exitUsage, "usage:"},
		"unknown":      {"a misspelled command does nothing", []string{"drian"}, exitUsage, "usage:"},
		"too many":     {"a word too many is a mistake", []string{"drain", "now"}, exitUsage, "usage:"},
		"no agent":     {"there is nobody to tell", []string{"drain"}, exitFailure, "ask the agent to drain"},
		"no envoy":     {"there is nobody to ask", []string{"admin", "GET", "/stats"}, exitFailure, "ask Envoy"},
		"bad settings": {"the field is named", []string{"proxy", `{"mesh":1}`}, exitUsage, "mesh"},
		"help":         {"asking is no mistake", []string{"-h"}, 0, "usage:"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			command := w.commandOf("", test.args...)
			out, _ := command.CombinedOutput()
			if got := command.ProcessState.ExitCode(); got != test.want || !strings.Contains(string(out), test.text) {
				t.Errorf("%s: got status %d\n%s\nwant %d and %q", test.reason, got, out, test.want, test.text)
			}
		})
	}
}
