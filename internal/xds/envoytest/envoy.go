package envoytest

import (
	"context"
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
	"testing"
	"time"

	"github.com/outrigger-mesh/outrigger/bootstrap"
	"github.com/outrigger-mesh/outrigger/e2e/envoybin"
	"github.com/outrigger-mesh/outrigger/internal/xds"
)

// A Pod is what an Envoy runs for.
type Pod struct {
	Namespace, Name, ServiceAccount string
	// Certificate is the file that the agent would write, see
	// [bootstrap.CertificateSecret].
	Certificate []byte
	// Network is the name of a network namespace to run in as [bootstrap.ProxyUID];
	// it needs root. Empty makes one with nothing but loopback.
	Network string
}

func (p Pod) settings() bootstrap.Settings {
	return bootstrap.Settings{Mesh: "outrigger", TrustDomain: "cluster.local", ControlPlane: "127.0.0.1:1", ControlPlaneID: "spiffe://cluster.local/ns/outrigger-system/sa/outriggerd"}
}

func (p Pod) node() bootstrap.Node {
	return bootstrap.Node{Namespace: p.Namespace, Pod: p.Name, UID: "uid", ServiceAccount: p.ServiceAccount}
}

// An Envoy is a running Envoy that gets its configuration from the test.
type Envoy struct {
	ads   *ads
	admin *http.Client
	log   *lockedBuffer
	state string
	dead  chan struct{}
}

// Start runs an Envoy with the bootstrap of a sidecar until the test ends. What
// it logs is in the test's output when that fails.
func Start(t testing.TB, p Pod) *Envoy {
	t.Helper()
	binary, err := envoybin.EnvoyBinary(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "envoy") //nolint:usetesting // it holds sockets, whose paths must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	files := bootstrap.FilesIn(dir)
	must(t, os.MkdirAll(files.SecretsDir, 0o755))
	must(t, os.Chmod(dir, 0o777)) // Envoy's user makes its socket here
	must(t, os.WriteFile(files.Certificate, p.Certificate, 0o644))
	must(t, os.WriteFile(files.Trust, []byte("{}"), 0o644))
	socket := filepath.Join(dir, "ads.sock")
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", socket)
	must(t, err)
	must(t, os.Chmod(socket, 0o777))
	must(t, os.WriteFile(files.Bootstrap, config(t, p), 0o644))

	e := &Envoy{ads: serveADS(listener), log: &lockedBuffer{}, state: dir, dead: make(chan struct{})}
	t.Cleanup(e.ads.grpc.Stop)
	e.admin = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", files.AdminSocket)
	}}, Timeout: 5 * time.Second}
	e.run(t, command(t.Context(), p, dir, binary))
	return e
}

func (e *Envoy) run(t testing.TB, cmd *exec.Cmd) {
	t.Helper()
	cmd.Stdout, cmd.Stderr = e.log, e.log
	must(t, cmd.Start())
	go func() {
		_ = cmd.Wait()
		close(e.dead)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-e.dead
		e.admin.CloseIdleConnections()
		if t.Failed() {
			t.Logf("Envoy's log:\n%s", e.log)
		}
	})
}

// command runs Envoy where the paths of a pod lead to dir.
func command(ctx context.Context, p Pod, dir, binary string) *exec.Cmd {
	mounts := fmt.Sprintf("mount -t tmpfs none /run && mkdir -p %[1]s && mount --bind %[2]s %[1]s && ", bootstrap.StateDir, dir)
	envoy := fmt.Sprintf("exec %%s%s -c %s/envoy.json --use-dynamic-base-id --disable-hot-restart --concurrency 2 --log-level warning --drain-time-s 30 --drain-strategy immediate --file-flush-interval-msec 100", binary, bootstrap.StateDir)
	var cmd *exec.Cmd
	switch {
	case p.Network != "":
		user := fmt.Sprintf("setpriv --reuid=%[1]d --regid=%[1]d --clear-groups ", bootstrap.ProxyUID)
		cmd = exec.CommandContext(ctx, "ip", "netns", "exec", p.Network, "sh", "-c", mounts+fmt.Sprintf(envoy, user))
	case os.Geteuid() == 0:
		cmd = exec.CommandContext(ctx, "unshare", "--mount", "--net", "sh", "-c", mounts+"ip link set lo up && "+fmt.Sprintf(envoy, ""))
	default:
		cmd = exec.CommandContext(ctx, "unshare", "--map-root-user", "--mount", "--net", "sh", "-c", mounts+"ip link set lo up && "+fmt.Sprintf(envoy, ""))
	}
	cmd.Env = append(os.Environ(), bootstrap.Environment(p.settings(), p.node())...)
	return cmd
}

// config is a sidecar's bootstrap whose control plane is the test, on a socket.
func config(t testing.TB, p Pod) []byte {
	t.Helper()
	text, err := bootstrap.Config(p.settings(), p.node())
	must(t, err)
	var config map[string]any
	must(t, json.Unmarshal(text, &config))
	cluster := config["static_resources"].(map[string]any)["clusters"].([]any)[0].(map[string]any)
	delete(cluster, "cluster_type")
	delete(cluster, "transport_socket")
	cluster["type"] = "STATIC"
	cluster["load_assignment"] = map[string]any{"cluster_name": cluster["name"], "endpoints": []any{map[string]any{"lb_endpoints": []any{
		map[string]any{"endpoint": map[string]any{"address": map[string]any{"pipe": map[string]any{"path": bootstrap.StateDir + "/ads.sock"}}}},
	}}}}
	delete(config, "stats_config") // tests look at more than a sidecar needs
	out, err := json.Marshal(config)
	must(t, err)
	return out
}

// Apply serves a Set and waits until Envoy has all of it: acknowledged, live and
// with nothing left warming. It fails the test at once if Envoy refuses a part.
func (e *Envoy) Apply(t testing.TB, set *xds.Set) {
	t.Helper()
	e.Publish(set)
	e.Await(t, set)
}

// Publish serves a Set without waiting, for tests of several Envoys.
func (e *Envoy) Publish(set *xds.Set) { e.ads.publish(set) }

// Await waits, as Apply does, for a Set that was published last.
func (e *Envoy) Await(t testing.TB, set *xds.Set) {
	t.Helper()
	var last error
	Eventually(t, func() error {
		select {
		case <-e.dead:
			t.Fatal("Envoy ended")
		default:
		}
		last = e.has(t.Context(), set)
		if errors.Is(last, errRefused) {
			t.Fatal(last)
		}
		return last
	})
}

// has returns nil when Envoy runs the Set and nothing else.
func (e *Envoy) has(ctx context.Context, set *xds.Set) error {
	nacks, quiet := e.ads.state()
	if len(nacks) > 0 {
		return fmt.Errorf("%w: %s", errRefused, strings.Join(nacks, "\n"))
	}
	if !quiet {
		return errors.New("something was not asked for or not acknowledged yet")
	}
	text, err := e.Get(ctx, "/config_dump")
	if err != nil {
		return err
	}
	return compareDump([]byte(text), set)
}

// Renew replaces the certificate file as the agent does, by one rename.
func (e *Envoy) Renew(t testing.TB, certificate []byte) {
	t.Helper()
	file := bootstrap.FilesIn(e.state).Certificate
	must(t, os.WriteFile(file+".new", certificate, 0o644))
	must(t, os.Rename(file+".new", file))
}

// Get asks Envoy's admin interface.
func (e *Envoy) Get(ctx context.Context, path string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://envoy"+path, nil)
	if err != nil {
		return "", err
	}
	r, err := e.admin.Do(request)
	if err != nil {
		return "", err
	}
	defer func() { _ = r.Body.Close() }()
	body, err := io.ReadAll(r.Body)
	return string(body), err
}

// Log returns what Envoy wrote so far, access log included.
func (e *Envoy) Log() string { return e.log.String() }

// waitLimit is long because the machine may be busy; nothing should come near.
const waitLimit = 20 * time.Second

// Eventually waits until ok returns nil, and fails the test if that takes too
// long.
func Eventually(t testing.TB, ok func() error) {
	t.Helper()
	deadline := time.NewTimer(waitLimit)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ok()
		if err == nil {
			return
		}
		select {
		case <-deadline.C:
			t.Fatalf("after %s: %v", waitLimit, err)
		case <-tick.C:
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
