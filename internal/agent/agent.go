package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/outrigger-mesh/outrigger/bootstrap"
)

// A Config is what an agent is started with. Every field is required.
type Config struct {
	// Settings as bootstrap.Parse returns them.
	Settings bootstrap.Settings
	// Node is the pod, and the folder for keys and sockets.
	Node bootstrap.Node
	// PodIP is the pod's first address, which the kubelet would probe.
	PodIP netip.Addr
	// TokenFile and TrustFile are read again each time that they are needed.
	TokenFile, TrustFile string
	// IdentityDir is where certificates come from that outriggerd does not sign.
	IdentityDir string
	// Envoy is the path of its binary.
	Envoy string
	// Address is where readiness and probes are served, MetricsAddress where Envoy's
	// metrics are.
	Address, MetricsAddress string
	// Signals to this process. SIGTERM means that the application is gone,
	// SIGINT that nobody wants to wait; all others are Envoy's.
	Signals <-chan os.Signal
	Log     *slog.Logger
}

// An agent is the state that the parts of Run share. Each part has its own lock
// where it needs one.
type agent struct {
	Config
	files    bootstrap.Files
	admin    admin
	identity *identity
	drain    drain
}

// Run is the life of a sidecar: it returns when Envoy has ended, with the status
// to exit with. That is Envoy's where Envoy ended by itself, and 0 where it was
// told to. An error is about the sidecar itself, such as a port that is taken.
//
// Run reaps every child of its process: a process runs it at most once, and has
// no other children.
func Run(ctx context.Context, c Config) (int, error) {
	files := bootstrap.FilesIn(c.Node.StateDir)
	a := &agent{
		Config:   c,
		files:    files,
		admin:    admin{socket: files.AdminSocket},
		identity: newIdentity(c, files),
	}
	if err := a.prepare(); err != nil {
		return 1, err
	}
	group, ctx := errgroup.WithContext(ctx)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	if err := a.serve(ctx, group); err != nil {
		return 1, err
	}
	group.Go(func() error { return a.identity.keep(ctx) })
	status := 1
	group.Go(func() (err error) {
		defer cancel() // the other parts serve Envoy, and end with it
		status, err = a.runEnvoy(ctx)
		return err
	})
	err := group.Wait()
	return status, err
}

// prepare makes the folders and the bootstrap, and clears away what an earlier
// run of the container left: the volume outlives it.
func (a *agent) prepare() error {
	config, err := bootstrap.Config(a.Settings, a.Node)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(a.files.SecretsDir, 0o700); err != nil {
		return fmt.Errorf("make the folder for secrets: %w", err)
	}
	for _, socket := range []string{a.files.AdminSocket, a.files.AgentSocket} {
		if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove the socket of an earlier run: %w", err)
		}
	}
	if err := replaceFile(a.files.Bootstrap, config); err != nil {
		return fmt.Errorf("write Envoy's bootstrap: %w", err)
	}
	return nil
}

// serve answers the kubelet and Prometheus on their ports, and our own commands on
// the socket.
func (a *agent) serve(ctx context.Context, group *errgroup.Group) error {
	var l net.ListenConfig
	port, err := l.Listen(ctx, "tcp", a.Address)
	if err != nil {
		return fmt.Errorf("listen for probes: %w", err)
	}
	metrics, err := l.Listen(ctx, "tcp", a.MetricsAddress)
	if err != nil {
		return errors.Join(fmt.Errorf("listen for scrapes of metrics: %w", err), port.Close())
	}
	socket, err := l.Listen(ctx, "unix", a.files.AgentSocket)
	if err != nil {
		return errors.Join(fmt.Errorf("listen for commands: %w", err), port.Close(), metrics.Close())
	}
	if err := os.Chmod(a.files.AgentSocket, 0o600); err != nil {
		return errors.Join(fmt.Errorf("listen for commands: %w", err), port.Close(), metrics.Close(), socket.Close())
	}
	a.Log.Info("agent listens", "address", port.Addr().String())
	probes := newProber(a.Settings.Probes, a.PodIP)
	probes.handlers[bootstrap.ReadyPath] = http.HandlerFunc(a.serveReady)
	a.start(ctx, group, port, probes)
	a.start(ctx, group, metrics, a.metricsHandler())
	a.start(ctx, group, socket, http.HandlerFunc(a.serveCommand))
	return nil
}

// start serves until ctx ends. Answers may be cut off then: Envoy is gone.
func (a *agent) start(ctx context.Context, group *errgroup.Group, l net.Listener, h http.Handler) {
	server := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(a.Log.Handler(), slog.LevelDebug),
	}
	group.Go(func() error {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve %s: %w", l.Addr(), err)
		}
		return nil
	})
	group.Go(func() error {
		<-ctx.Done()
		return server.Close()
	})
}

// serveReady says whether traffic may come: a certificate that is valid, and an
// Envoy that has listeners. It does not ask for the control plane, without which
// traffic flows on.
func (a *agent) serveReady(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), time.Second)
	defer cancel()
	if err := errors.Join(a.identity.valid(time.Now()), a.admin.ready(ctx)); err != nil {
		http.Error(w, "not ready: "+err.Error(), http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ready")
}
