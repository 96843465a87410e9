package main

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
)

// startTCP runs an echo server until the test ends, and returns its address.
func startTCP(t *testing.T, banner string) string {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	e := tcpEcho{banner: banner}
	listener, err := e.listen(ctx)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- e.serve(ctx, listener) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("tcp-echo: %v", err)
		}
	})
	_, port, err := net.SplitHostPort(listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return "127.0.0.1:" + port
}

// closing listens on an address where every connection is closed at once.
func closing(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_ = conn.Close()
		}
	}()
	return listener.Addr().String()
}

func TestTCP(t *testing.T) {
	silent, loud := startTCP(t, ""), startTCP(t, "220 ready")
	denied := closing(t)
	cases := map[string]struct {
		reason  string
		args    []string
		out     string
		end     string
		failing bool
	}{
		"Echo": {
			reason: "what was sent comes back",
			args:   []string{"--address", silent, "--send", "hello", "--expect", "hello"},
			out:    "hello\n", end: "received what was expected",
		},
		"ServerSpeaksFirst": {
			reason: "the banner comes without a word from the client",
			args:   []string{"--address", loud, "--expect", "ready"},
			out:    "220 ready\n", end: "received what was expected",
		},
		"Unexpected": {
			reason: "other words than the expected ones are shown, and are a failure",
			args:   []string{"--address", loud, "--expect", "welcome", "--timeout", "1s"},
			out:    "220 ready\n", end: "nothing more came in time", failing: true,
		},
		"Silence": {
			reason: "a connection on which nothing comes is a failure",
			args:   []string{"--address", silent, "--timeout", "100ms"},
			end:    "nothing more came in time", failing: true,
		},
		"Closed": {
			reason: "a denied connection is closed without a word",
			args:   []string{"--address", denied},
			end:    "closed by the peer", failing: true,
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			out, end, err := command(t, append([]string{"tcp-client"}, tc.args...)...)
			if out != tc.out || strings.TrimSpace(end) != tc.end || errors.Is(err, errNotAsWished) != tc.failing {
				t.Errorf("%s: got %q, %q, %v; want %q, %q, failure %v", tc.reason, out, end, err, tc.out, tc.end, tc.failing)
			}
		})
	}
}

func TestTCPEchoClosesWhenItStops(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	e := tcpEcho{banner: "hello"}
	listener, err := e.listen(ctx)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- e.serve(ctx, listener) }()
	conn, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	buffer := make([]byte, 16)
	if n, err := conn.Read(buffer); err != nil || string(buffer[:n]) != "hello\n" {
		t.Fatalf("banner: got %q, %v", buffer[:n], err)
	}
	stop()
	if n, err := conn.Read(buffer); err == nil {
		t.Errorf("after the stop: read %q, want the connection closed", buffer[:n])
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}
