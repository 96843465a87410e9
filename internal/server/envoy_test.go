package server

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
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

	"github.com/go-logr/logr/testr"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/outrigger-mesh/outrigger/bootstrap"
	"github.com/outrigger-mesh/outrigger/e2e/envoybin"
	"github.com/outrigger-mesh/outrigger/internal/mesh"
	"github.com/outrigger-mesh/outrigger/internal/xds"
)

const serverID = "spiffe://cluster.local/ns/outrigger-system/sa/outriggerd"

// A realEnvoy runs with a sidecar's bootstrap in a network of its own. Its
// control plane is on a socket, and otherwise as in a pod: TLS with the
// workload's certificate.
type realEnvoy struct {
	dir   string
	admin *http.Client
	log   *lockedBuffer
}

func startEnvoy(t *testing.T, ca *testCA, pod mesh.Workload) *realEnvoy {
	t.Helper()
	binary, err := envoybin.EnvoyBinary(t.Context())
	must(t, err)
	dir, err := os.MkdirTemp("", "envoy") //nolint:usetesting // its path must be short: it holds sockets
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	files := bootstrap.FilesIn(dir)
	must(t, os.MkdirAll(files.SecretsDir, 0o700))
	chain, key := encodePair(t, ca.leaf(t, pod.Identity.URI(trustDomain), pod.ID.UID, time.Hour))
	certificate, err := bootstrap.CertificateSecret(chain, key)
	must(t, err)
	trust, err := bootstrap.TrustSecret([]byte(ca.bundle()))
	must(t, err)
	must(t, os.WriteFile(files.Certificate, certificate, 0o600))
	must(t, os.WriteFile(files.Trust, trust, 0o600))
	must(t, os.WriteFile(files.Bootstrap, envoyConfig(t, pod), 0o600))

	e := &realEnvoy{dir: dir, log: &lockedBuffer{}, admin: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", files.AdminSocket)
		},
	}}}
	script := fmt.Sprintf("mount -t tmpfs none /run && mkdir -p %[1]s && mount --bind %[2]s %[1]s && ip link set lo up && exec %[3]s -c %[1]s/envoy.json --use-dynamic-base-id --disable-hot-restart --concurrency 1 --log-level warning",
		bootstrap.StateDir, dir, binary)
	arguments := []string{"--mount", "--net", "sh", "-c", script}
	if os.Geteuid() != 0 {
		arguments = append([]string{"--map-root-user"}, arguments...)
	}
	cmd := exec.CommandContext(t.Context(), "unshare", arguments...)
	cmd.Env = append(os.Environ(), bootstrap.EnvPodNamespace+"="+pod.ID.Namespace, bootstrap.EnvPodName+"="+pod.ID.Pod)
	cmd.Stdout, cmd.Stderr = e.log, e.log
	must(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		e.admin.CloseIdleConnections()
		if t.Failed() {
			t.Logf("Envoy's log:\n%s", e.log)
		}
	})
	return e
}

// envoyConfig is a sidecar's bootstrap whose control plane is on a socket.
func envoyConfig(t *testing.T, pod mesh.Workload) []byte {
	t.Helper()
	text, err := bootstrap.Config(
		bootstrap.Settings{Mesh: "outrigger", TrustDomain: trustDomain, ControlPlane: "127.0.0.1:1", ControlPlaneID: serverID},
		bootstrap.Node{Namespace: pod.ID.Namespace, Pod: pod.ID.Pod, UID: pod.ID.UID, ServiceAccount: pod.Identity.ServiceAccount},
	)
	must(t, err)
	var config map[string]any
	must(t, json.Unmarshal(text, &config))
	cluster := config["static_resources"].(map[string]any)["clusters"].([]any)[0].(map[string]any)
	delete(cluster, "cluster_type")
	cluster["type"] = "STATIC"
	cluster["load_assignment"] = map[string]any{"cluster_name": cluster["name"], "endpoints": []any{map[string]any{"lb_endpoints": []any{
		map[string]any{"endpoint": map[string]any{"address": map[string]any{"pipe": map[string]any{"path": bootstrap.StateDir + "/xds.sock"}}}},
	}}}}
	out, err := json.Marshal(config)
	must(t, err)
	return out
}

func encodePair(t *testing.T, c *tls.Certificate) (chain, key []byte) {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	must(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// get asks Envoy's admin interface.
func (e *realEnvoy) get(t *testing.T, path string) string {
	t.Helper()
	r, err := e.admin.Get("http://envoy" + path)
	must(t, err)
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	must(t, err)
	return string(text)
}

// A replica is a server at the place where an Envoy looks for it.
func (e *realEnvoy) replica(t *testing.T, ca *testCA) (*Server, func()) {
	t.Helper()
	s := New(Config{
		Metrics: prometheus.NewRegistry(), Log: testr.New(t), Pods: testPods{},
		Credentials: credentialsOf(t, ca), Signer: refusesAll,
	})
	path := filepath.Join(e.dir, "xds.sock")
	_ = os.Remove(path)
	listener, err := net.Listen("unix", path)
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, listener) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return s, stop
}

// publishAndWait waits until the one proxy has acknowledged all of a snapshot.
func publishAndWait(t *testing.T, s *Server, town *town, pod mesh.Workload) {
	t.Helper()
	snap := town.snapshot(t)
	must(t, s.Publish(t.Context(), snap))
	view, _ := snap.View(pod.ID)
	set, err := s.cache.Set(view)
	must(t, err)
	eventually(t, "Envoy has acknowledged everything", func() bool {
		statuses := s.statuses()
		if len(statuses) != 1 || len(statuses[0].Acknowledged) < len(xds.Types()) {
			return false
		}
		if statuses[0].LastRefusal != nil {
			t.Fatalf("Envoy refused %+v", statuses[0].LastRefusal)
		}
		for _, version := range statuses[0].Acknowledged {
			if version != set.Version() {
				return false
			}
		}
		return true
	})
}

// TestRealEnvoy follows an Envoy through its start, changes, and a restart of the
// control plane.
func TestRealEnvoy(t *testing.T) {
	ca := newTestCA(t)
	town := newTown(ca)
	pod := town.pod("a-1", "a")
	for i := range 20 {
		town.service(fmt.Sprintf("s%02d", i), byte(i))
	}
	e := startEnvoy(t, ca, pod)
	s, stop := e.replica(t, ca)
	publishAndWait(t, s, town, pod)
	if text := e.get(t, "/listeners"); strings.Count(text, "town/s") != 20 {
		t.Errorf("want 20 listeners for services, got:\n%s", text)
	}

	if got := s.statuses()[0].TLS; got != "TLS 1.3 X25519MLKEM768" {
		t.Errorf("the stream is over %s", got)
	}

	town.parts.Services[0].Endpoints[0].Port = 9090
	town.parts.Services = append(town.parts.Services[:10:10], town.parts.Services[15:]...)
	town.service("new", 100)
	publishAndWait(t, s, town, pod)
	eventually(t, "Envoy has taken out what is gone and has what is new", func() bool {
		clusters, listeners := e.get(t, "/clusters"), e.get(t, "/listeners")
		return !strings.Contains(clusters, "town/s12:80::") && strings.Contains(clusters, "town/new:80::10.1.1.100:8080::") &&
			strings.Contains(clusters, "town/s00:80::10.1.1.0:9090::") && !strings.Contains(listeners, "town/s12:80") && strings.Contains(listeners, "town/new:80")
	})

	stop()
	town.service("newer", 101)
	s, _ = e.replica(t, ca)
	publishAndWait(t, s, town, pod)
	eventually(t, "Envoy has what was new after the restart", func() bool { return strings.Contains(e.get(t, "/listeners"), "town/newer:80") })
	for _, typ := range []xds.Type{xds.Cluster, xds.Endpoints, xds.Listener, xds.Route} {
		// One resource, not sixteen: the stream before had brought the others.
		if got := value(t, s.metrics.bytes.WithLabelValues(typ.String())); got == 0 || got > 5000 {
			t.Errorf("%s: %v bytes were sent after the restart", typ, got)
		}
		if got := value(t, s.metrics.nacks.WithLabelValues(typ.String())); got > 0 {
			t.Errorf("%s: Envoy refused %v responses", typ, got)
		}
	}
	if text := e.log.String(); strings.Contains(text, "[error]") {
		t.Error("Envoy logged errors")
	}
}

// lockedBuffer collects what a process prints.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// TestRealEnvoyShowsItsNewCertificate holds that an Envoy is soon on the certificate
// that its pod was given last, and not over the connection of before.
func TestRealEnvoyShowsItsNewCertificate(t *testing.T) {
	ca := newTestCA(t)
	town := newTown(ca)
	pod := town.pod("a-1", "a")
	town.service("shop", 1)
	e := startEnvoy(t, ca, pod)
	s, _ := e.replica(t, ca)
	publishAndWait(t, s, town, pod)
	want := s.Proxies()[0]
	if want.Trust != town.parts.Settings.Trust().Key {
		t.Errorf("Envoy acknowledged everything, and trusts %q", want.Trust)
	}
	for n := range 3 {
		next := ca.leaf(t, pod.Identity.URI(trustDomain), pod.ID.UID, time.Duration(n+2)*time.Hour)
		e.present(t, next)
		s.renewed(pod.ID.UID)
		ended := time.Now()
		var downFor time.Duration
		eventually(t, "Envoy is back with the new certificate, and trusts as before", func() bool {
			now := s.Proxies()
			if len(now) == 0 {
				downFor = time.Since(ended)
			}
			return len(now) == 1 && now[0].NotAfter.Equal(parsed(t, next).NotAfter) && now[0].Trust == want.Trust
		})
		t.Logf("on the new certificate %s after it was signed, without a stream until %s", time.Since(ended), downFor)
	}
	if got := value(t, s.metrics.nacks.WithLabelValues(xds.Secret.String())); got > 0 {
		t.Errorf("Envoy refused %v responses", got)
	}
}

// present puts a certificate where Envoy reads it, as the agent does.
func (e *realEnvoy) present(t *testing.T, certificate *tls.Certificate) {
	t.Helper()
	chain, key := encodePair(t, certificate)
	secret, err := bootstrap.CertificateSecret(chain, key)
	must(t, err)
	file := bootstrap.FilesIn(e.dir).Certificate
	must(t, os.WriteFile(file+".new", secret, 0o644))
	must(t, os.Rename(file+".new", file))
}
