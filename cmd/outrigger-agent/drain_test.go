package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"

	"github.com/outrigger-mesh/outrigger/bootstrap"
)

// TestDrain follows the end of a pod whose callers are still being answered.
func TestDrain(t *testing.T) {
	w := newWorld(t)
	release := w.serveApp()
	w.serve()
	s := w.start("", nil)
	s.ready()
	answer := make(chan string, 1)
	go func() {
		code, text, err := w.get(15003, "/slow")
		answer <- fmt.Sprint(code, " ", text, " ", err)
	}()
	s.eventually("the request is on its way", func() error { return s.stat("http.inbound.downstream_rq_active", "1") })

	if out, err := w.commandOf("", "drain").CombinedOutput(); err != nil {
		t.Fatalf("drain: %v\n%s", err, out)
	}
	// Envoy goes on accepting, and says that this connection is the last.
	response, err := http.Get(fmt.Sprintf("http://%s:15003/", w.ip))
	if err != nil {
		t.Fatalf("while draining: %v", err)
	}
	defer response.Body.Close()
	if !response.Close || response.StatusCode != http.StatusOK {
		t.Errorf("while draining: got %d, close %v; want an answer with connection: close", response.StatusCode, response.Close)
	}

	if err := s.command.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	// Two questions to a sidecar that is to end: it is still there, and waits.
	for range 2 {
		if code, _, err := s.get(15003, "/"); code != http.StatusOK {
			t.Fatalf("after SIGTERM, with a request on its way: got %d %v", code, err)
		}
	}
	close(release)
	if got := <-answer; got != "200 hello <nil>" {
		t.Errorf("the request that was on its way: got %s; want its answer", got)
	}
	if code := s.exit(); code != 0 {
		t.Errorf("got status %d; want 0", code)
	}
	if log := s.log.String(); !strings.Contains(log, "nobody is served any more") || strings.Count(log, "drain started") != 1 {
		t.Error("the sidecar did not wait for its callers, or began to drain twice")
	}
}

// TestDrainDeadline has a TCP connection that nobody ends.
func TestDrainDeadline(t *testing.T) {
	w := newWorld(t)
	w.serveApp()
	w.serve()
	s := w.start("", func(s *bootstrap.Settings) { s.DrainSeconds = 4 })
	s.ready()
	conn, err := net.Dial("tcp", w.tcpIP+":15003")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: app\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(conn).ReadString('\n'); err != nil || !strings.Contains(line, "200") {
		t.Fatalf("over TCP: got %q %v", line, err)
	}
	if err := s.command.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := s.exit(); code != 0 {
		t.Errorf("got status %d; want 0", code)
	}
	if !strings.Contains(s.log.String(), "drain ended by the deadline") {
		t.Error("the connection was not waited for")
	}
}

// TestDrainIdle has a keep-alive connection, over which nothing can be asked any
// more: it is not waited for.
func TestDrainIdle(t *testing.T) {
	w := newWorld(t)
	w.serveApp()
	w.serve()
	s := w.start("", func(s *bootstrap.Settings) { s.DrainSeconds = 3600 })
	s.ready()
	client := &http.Client{Transport: &http.Transport{}}
	response, err := client.Get(fmt.Sprintf("http://%s:15003/", w.ip))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, response.Body); err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	s.eventually("the connection is idle", func() error { return s.stat("http.inbound.downstream_cx_active", "1") })
	if err := s.command.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := s.exit(); code != 0 {
		t.Errorf("got status %d; want 0", code)
	}
}
