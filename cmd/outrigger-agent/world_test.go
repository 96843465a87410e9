package main

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/outrigger-mesh/outrigger/bootstrap"
	"github.com/outrigger-mesh/outrigger/e2e/envoybin"
	"github.com/outrigger-mesh/outrigger/internal/signing"
)

const (
	controlPlaneID = "spiffe://cluster.local/ns/outrigger-system/sa/outriggerd"
	workloadID     = "spiffe://cluster.local/ns/bookstore/sa/store"
	// asAgent in the environment makes the test binary the agent itself.
	asAgent = "OUTRIGGER_TEST_AS_AGENT"
	// patience bounds every wait. It is no assertion about speed, and longer than the
	// sidecar's longest back-off.
	patience = time.Minute
)

func TestMain(m *testing.M) {
	if os.Getenv(asAgent) != "" {
		main()
	}
	os.Exit(m.Run())
}

// A world is one workload and its control plane: a real certificate authority and
// a delta ADS server on one port, and an application behind the real Envoy.
type world struct {
	t     *testing.T
	dir   string
	ip    string // where Envoy, for HTTP, and the agent listen; each world has its own
	tcpIP string // where Envoy listens for TCP
	root  authority

	// change is a change of the trust domain that is under way; nil for none.
	change *change

	mu       sync.Mutex
	id       string // what the control plane's certificate says
	token    string // what it accepts
	lifetime time.Duration
	asked    int                                                                      // calls of Sign
	tamper   func(*x509.CertificateRequest, *x509.Certificate, *signing.SignResponse) // nil: it is honest
	also     []*x509.Certificate                                                      // roots besides root
	nodes    []string                                                                 // ids of nodes that opened a stream, with their certificate
	address  string
	app      string
	// environment of the agent, besides what pods have.
	environment []string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	n, pid := worlds.next(), os.Getpid()
	w := &world{
		t: t, dir: t.TempDir(), root: newAuthority(t),
		ip: fmt.Sprintf("127.%d.%d.%d", 64+n, pid>>8&255, pid&255), tcpIP: fmt.Sprintf("127.%d.%d.%d", 128+n, pid>>8&255, pid&255),
		id: controlPlaneID, token: "one", lifetime: time.Hour,
	}
	w.write("token", "one\n")
	w.write("ca.crt", string(w.root.pem()))
	// Reserve the control plane's address without serving there yet.
	w.address = freeAddress(t)
	return w
}

// worlds counts them, so that two that run at once differ.
var worlds counter

type counter struct {
	mu sync.Mutex
	n  int
}

func (c *counter) next() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n++
	return c.n
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func (w *world) write(name, content string) {
	w.t.Helper()
	if err := os.WriteFile(filepath.Join(w.dir, name), []byte(content), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// A sidecar is a running agent.
type sidecar struct {
	*world
	command *exec.Cmd
	log     *buffer
	exited  chan struct{}
}

// A buffer is a log that is read while it is written.
type buffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// start runs the agent as a process of its own, with the real Envoy.
func (w *world) start(binary string, change func(*bootstrap.Settings)) *sidecar {
	w.t.Helper()
	envoy, err := envoybin.EnvoyBinary(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	settings := bootstrap.Settings{
		Mesh: "outrigger", TrustDomain: "cluster.local", ControlPlane: w.address, ControlPlaneID: controlPlaneID,
		LogLevel: "info", MemoryLimit: 256 << 20,
	}
	if change != nil {
		change(&settings)
	}
	text, err := json.Marshal(settings)
	if err != nil {
		w.t.Fatal(err)
	}
	s := &sidecar{world: w, log: &buffer{}, exited: make(chan struct{})}
	s.command = w.commandOf(binary, "-envoy", envoy, "-address", w.ip+":15020", "-metrics-address", w.ip+":15010", "proxy", string(text))
	s.command.Stderr = s.log
	s.command.Stdout = s.log
	if err := s.command.Start(); err != nil {
		w.t.Fatal(err)
	}
	go func() {
		defer close(s.exited)
		_ = s.command.Wait()
	}()
	w.t.Cleanup(func() {
		_ = s.command.Process.Signal(os.Interrupt)
		<-s.exited
		if w.t.Failed() {
			w.t.Logf("the sidecar's log:\n%s", s.log)
		}
	})
	return s
}

// commandOf makes a command of the agent; binary is empty for this test's own.
func (w *world) commandOf(binary string, args ...string) *exec.Cmd {
	w.t.Helper()
	if binary == "" {
		var err error
		if binary, err = os.Executable(); err != nil {
			w.t.Fatal(err)
		}
	}
	flags := []string{"-state", w.dir + "/state", "-token", w.dir + "/token", "-trust", w.dir + "/ca.crt", "-identity", w.dir + "/identity"}
	command := exec.Command(binary, append(flags, args...)...)
	command.Env = append([]string{
		asAgent + "=1",
		bootstrap.EnvPodNamespace + "=bookstore", bootstrap.EnvPodName + "=store-1", bootstrap.EnvPodUID + "=u-1",
		bootstrap.EnvServiceAccount + "=store", bootstrap.EnvPodIPs + "=127.0.0.1",
	}, w.environment...)
	return command
}

// get asks the agent, or Envoy's inbound side where port is 15003.
func (w *world) get(port int, path string) (int, string, error) {
	request, err := http.NewRequestWithContext(w.t.Context(), http.MethodGet, fmt.Sprintf("http://%s:%d%s", w.ip, port, path), nil)
	if err != nil {
		return 0, "", err
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	response, err := client.Do(request)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	return response.StatusCode, strings.TrimSpace(string(text)), err
}

// ready waits until the sidecar says so.
func (s *sidecar) ready() {
	s.t.Helper()
	s.eventually("the sidecar is ready", func() error {
		if code, text, err := s.get(15020, "/ready"); err != nil || code != http.StatusOK {
			return fmt.Errorf("%d %s %w", code, text, err)
		}
		return nil
	})
}

// logs waits for a line.
func (s *sidecar) logs(text string) {
	s.t.Helper()
	s.eventually("the log has "+text, func() error {
		if !strings.Contains(s.log.String(), text) {
			return errors.New("it has not")
		}
		return nil
	})
}

// exit waits for the end and returns the status.
func (s *sidecar) exit() int {
	s.t.Helper()
	select {
	case <-s.exited:
		return s.command.ProcessState.ExitCode()
	case <-time.After(patience):
		s.t.Fatal("the sidecar did not end")
		return 0
	}
}

// eventually waits for a condition.
func (w *world) eventually(what string, condition func() error) {
	w.t.Helper()
	w.poll(20*time.Millisecond, what, condition)
}

// poll waits for a condition, which it looks at every so often.
func (w *world) poll(every time.Duration, what string, condition func() error) {
	w.t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		err := condition()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			w.t.Fatalf("waited for: %s: %v", what, err)
		}
	}
}
