package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
)

// A server is what all roles that listen have in common.
type server struct {
	port  uint16
	host  string
	drain time.Duration
	idle  time.Duration
	tls   bool
}

func (s *server) flags(cmd *cobra.Command, port uint16, drain time.Duration) {
	cmd.Flags().Uint16Var(&s.port, "port", port, "port to listen on")
	cmd.Flags().StringVar(&s.host, "host", "", "address to listen on; empty for all")
	cmd.Flags().BoolVar(&s.tls, "tls", false, "speak TLS, with a certificate that the program makes for itself")
	cmd.Flags().DurationVar(&s.drain, "drain", drain, "how long to go on serving after the signal to stop")
	cmd.Flags().DurationVar(&s.idle, "idle-timeout", 0, "close HTTP connections that are idle for so long; 0 for never")
}

func (s *server) listen(ctx context.Context) (net.Listener, error) {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", net.JoinHostPort(s.host, strconv.Itoa(int(s.port))))
	if err != nil || !s.tls {
		return listener, err
	}
	own, err := ownCertificate()
	if err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	return tls.NewListener(listener, own), nil
}

// run listens and serves handler until ctx ends; see serve.
func (s *server) run(ctx context.Context, handler http.Handler) error {
	listener, err := s.listen(ctx)
	if err != nil {
		return err
	}
	return s.serve(ctx, listener, handler)
}

// serve answers requests, and probes beside them, until ctx ends. From then on
// readiness fails and connections are closed after their next answer, so that
// callers go elsewhere; after the drain time no new connection is taken, and
// requests under way are finished.
func (s *server) serve(ctx context.Context, listener net.Listener, handler http.Handler) error {
	var stopping atomic.Bool
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	web := &http.Server{
		Protocols:         protocols,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       s.idle,
		// No mux here: it would answer paths such as /a/../b with a redirect,
		// and tests want to see what such a path reaches.
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch r.URL.Path {
			case "/liveness", "/startup":
				_, _ = fmt.Fprintln(w, "ok")
			case "/readiness":
				if stopping.Load() {
					http.Error(w, "stopping", http.StatusServiceUnavailable)
					return
				}
				_, _ = fmt.Fprintln(w, "ok")
			default:
				handler.ServeHTTP(w, r)
			}
		}),
	}
	served := make(chan error, 1)
	go func() { served <- web.Serve(listener) }()
	slog.Info("serving", "address", listener.Addr().String())

	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	slog.Info("draining", "time", s.drain.String())
	stopping.Store(true)
	web.SetKeepAlivesEnabled(false)
	select {
	case err := <-served:
		return err
	case <-time.After(s.drain):
	}
	finish, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if err := web.Shutdown(finish); err != nil {
		return fmt.Errorf("finish requests under way: %w", err)
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// answer writes value as JSON.
func answer(w http.ResponseWriter, value any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(value); err != nil {
		slog.Warn("write answer", "error", err)
	}
}
