package main

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"testing"
	"time"
)

// A site is an HTTP server as outriggerd has them.
type site struct {
	address string
	ended   chan error
}

func newSite(t *testing.T, ctx context.Context, handler http.Handler) site { //nolint:revive // ctx is not the test's
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := site{address: listener.Addr().String(), ended: make(chan error, 1)}
	go func() { s.ended <- serveOn(ctx, listener, handler) }()
	return s
}

func (s site) get(ctx context.Context, path string) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.address+path, nil)
	if err != nil {
		return nil, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	_, err = io.Copy(io.Discard, response.Body)
	return response, errors.Join(err, response.Body.Close())
}

func TestTerminatingReplicaStillAnswers(t *testing.T) {
	told, tell := context.WithCancel(t.Context())
	running, stop := outlast(told, time.Hour)
	defer stop()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /inject", func(http.ResponseWriter, *http.Request) {})
	health(told, mux, nil)
	s := newSite(t, running, sendAway(told, mux))

	expect := func(when, path string, status int, last bool) {
		t.Helper()
		response, err := s.get(t.Context(), path)
		if err != nil {
			t.Fatalf("%s %s: %v", when, path, err)
		}
		if response.StatusCode != status || response.Close != last {
			t.Errorf("%s %s: got status %d, connection to be closed %t; want %d, %t", when, path, response.StatusCode, response.Close, status, last)
		}
	}
	expect("before SIGTERM", "/inject", http.StatusOK, false)
	expect("before SIGTERM", "/readyz", http.StatusOK, false)
	tell()
	expect("after SIGTERM", "/inject", http.StatusOK, true)
	expect("after SIGTERM", "/healthz", http.StatusOK, true)
	expect("after SIGTERM", "/readyz", http.StatusServiceUnavailable, true)
	stop()
	if err := <-s.ended; err != nil {
		t.Errorf("serving ended with %v", err)
	}
	if _, err := s.get(t.Context(), "/inject"); err == nil {
		t.Error("the address still answers after the end")
	}
}

func TestOutlastEnds(t *testing.T) {
	told, tell := context.WithCancel(t.Context())
	running, stop := outlast(told, time.Millisecond)
	defer stop()
	tell()
	select {
	case <-running.Done():
	case <-time.After(time.Minute):
		t.Error("the longer context never ended")
	}
}

func TestRequestUnderWayIsAnswered(t *testing.T) {
	running, stop := context.WithCancel(t.Context())
	defer stop()
	begun, finish := make(chan struct{}), make(chan struct{})
	s := newSite(t, running, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(begun)
		<-finish
		if r.Context().Err() != nil {
			w.WriteHeader(http.StatusInternalServerError)
		}
	}))
	answered := make(chan error, 1)
	go func() {
		response, err := s.get(t.Context(), "/inject")
		if err == nil && response.StatusCode != http.StatusOK {
			err = errors.New("its context had ended: " + response.Status)
		}
		answered <- err
	}()
	<-begun
	stop()
	close(finish)
	if err := <-answered; err != nil {
		t.Errorf("a request that was under way at the end: %v", err)
	}
	if err := <-s.ended; err != nil {
		t.Errorf("serving ended with %v", err)
	}
}
