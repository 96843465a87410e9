package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// ask sends a request and returns the answer with its body.
func ask(t *testing.T, method, url, body string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultTransport.RoundTrip(req) // unlike a client, follows no redirect
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(text)
}

func TestBooksGoFromTheWarehouseToTheStore(t *testing.T) {
	warehouse := httptest.NewServer(newWarehouse())
	defer warehouse.Close()
	store := httptest.NewServer(newStore("bookstore-v1", warehouse.URL))
	defer store.Close()

	for range 2 {
		resp, _ := ask(t, http.MethodGet, store.URL+"/buy-a-book/new", "")
		if resp.StatusCode != http.StatusOK || resp.Header.Get("Identity") != "bookstore-v1" || resp.Header.Get("Restocked") != "200" {
			t.Fatalf("buy a book: got %s, Identity %q, Restocked %q", resp.Status, resp.Header.Get("Identity"), resp.Header.Get("Restocked"))
		}
	}
	resp, _ := ask(t, http.MethodGet, store.URL+"/books-bought", "")
	if got := resp.Header.Get("Booksbought"); got != "2" {
		t.Errorf("after two sales: Booksbought %q, want 2", got)
	}
	if _, body := ask(t, http.MethodGet, warehouse.URL+"/status", ""); !strings.Contains(body, `"booksSent":2`) {
		t.Errorf("warehouse after two sales: %s, want 2 books sent", body)
	}
	resp, _ = ask(t, http.MethodPost, store.URL+"/update-books-bought", "41")
	if got := resp.Header.Get("Booksbought"); got != "41" {
		t.Errorf("after an update: Booksbought %q, want 41", got)
	}
}

func TestStoreSellsWithoutItsWarehouse(t *testing.T) {
	forbidden := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusForbidden)
	}))
	defer forbidden.Close()
	store := httptest.NewServer(newStore("bookstore", forbidden.URL))
	defer store.Close()
	resp, _ := ask(t, http.MethodGet, store.URL+"/buy-a-book/new", "")
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Restocked") != "403" {
		t.Errorf("got %s, Restocked %q; want 200 and 403", resp.Status, resp.Header.Get("Restocked"))
	}
}

func TestShopsRefuse(t *testing.T) {
	store := httptest.NewServer(newStore("bookstore", ""))
	defer store.Close()
	warehouse := httptest.NewServer(newWarehouse())
	defer warehouse.Close()
	cases := map[string]struct {
		reason       string
		method, url  string
		body         string
		want         int
		wantMentions string
	}{
		"WordForANumber": {
			reason: "the answer says what was sent",
			method: http.MethodPost, url: warehouse.URL + "/restock-books", body: "many",
			want: http.StatusBadRequest, wantMentions: `"many"`,
		},
		"FewerThanNone": {
			reason: "books are counted from 0",
			method: http.MethodPost, url: store.URL + "/update-books-bought", body: "-1",
			want: http.StatusBadRequest, wantMentions: "0 or more",
		},
		"HugeBody": {
			reason: "a number is short; the rest is not read",
			method: http.MethodPost, url: warehouse.URL + "/restock-books", body: strings.Repeat("1", 100),
			want: http.StatusBadRequest, wantMentions: "too large",
		},
		"WrongMethod": {
			reason: "policies tell methods apart, so the store does",
			method: http.MethodPost, url: store.URL + "/books-bought",
			want: http.StatusMethodNotAllowed,
		},
		"UnknownPath": {
			reason: "a store has no other pages",
			method: http.MethodGet, url: store.URL + "/admin",
			want: http.StatusNotFound,
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			resp, body := ask(t, tc.method, tc.url, tc.body)
			if resp.StatusCode != tc.want || !strings.Contains(body, tc.wantMentions) {
				t.Errorf("%s: got %s, %q; want %d and a body with %q", tc.reason, resp.Status, body, tc.want, tc.wantMentions)
			}
		})
	}
}

// A running server is one that serves as the roles do.
type running struct {
	url   string
	stop  func()       // sends the signal to stop
	done  <-chan error // what serve returns
	crash func()       // takes the port away
}

func start(t *testing.T, s server, handler http.Handler) running {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	listener, err := s.listen(ctx)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.serve(ctx, listener, handler) }()
	_, port, err := net.SplitHostPort(listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return running{url: "http://127.0.0.1:" + port, stop: cancel, done: ended, crash: func() { _ = listener.Close() }}
}

func TestHTTPEchoGetsPathsAsSent(t *testing.T) {
	echo := start(t, server{}, newHTTPEcho("echo"))
	resp, body := ask(t, http.MethodPut, echo.url+"/ok/../admin%2f?a=b", "")
	var got Echo
	if err := json.Unmarshal([]byte(body), &got); err != nil {
		t.Fatalf("%s: %v", body, err)
	}
	if resp.StatusCode != http.StatusOK || got.Path != "/ok/../admin%2f?a=b" || got.Method != http.MethodPut {
		t.Errorf("got %s %s %s, want 200 and the request as it was sent", resp.Status, got.Method, got.Path)
	}
	echo.stop()
	if err := <-echo.done; err != nil {
		t.Error(err)
	}
}

func TestServerFinishesWhatIsUnderWay(t *testing.T) {
	arrived, release := make(chan struct{}), make(chan struct{})
	slow := start(t, server{drain: time.Millisecond}, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		close(arrived)
		<-release
	}))
	if resp, _ := ask(t, http.MethodGet, slow.url+"/readiness", ""); resp.StatusCode != http.StatusOK {
		t.Errorf("readiness: got %s, want 200", resp.Status)
	}
	answered := make(chan int, 1)
	go func() {
		q := request{url: slow.url, method: http.MethodGet, timeout: time.Minute}
		answered <- q.do(t.Context(), newClient(true, 1)).Status
	}()
	<-arrived
	slow.stop()
	// The server gives up its port after the drain time, with the request
	// still under way.
	address := strings.TrimPrefix(slow.url, "http://")
	for {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			break
		}
		_ = conn.Close()
	}
	select {
	case err := <-slow.done:
		t.Fatalf("server ended (%v) with a request under way", err)
	default:
	}
	close(release)
	if got := <-answered; got != http.StatusOK {
		t.Errorf("request under way: got %d, want 200", got)
	}
	if err := <-slow.done; err != nil {
		t.Errorf("serve: %v", err)
	}
}

func TestServerServesWhileItDrains(t *testing.T) {
	store := start(t, server{drain: time.Hour}, newStore("bookstore", ""))
	store.stop()
	// From the signal on readiness fails, while buyers are still served.
	for {
		resp, _ := ask(t, http.MethodGet, store.url+"/readiness", "")
		if resp.StatusCode == http.StatusServiceUnavailable {
			break
		}
	}
	if resp, _ := ask(t, http.MethodGet, store.url+"/books-bought", ""); resp.StatusCode != http.StatusOK || !resp.Close {
		t.Errorf("while draining: got %s, connection closed %v; want 200 and true", resp.Status, resp.Close)
	}
	store.crash()
	if err := <-store.done; !errors.Is(err, net.ErrClosed) {
		t.Errorf("serve, its port taken away: got %v, want %v", err, net.ErrClosed)
	}
}

func TestShopperCounts(t *testing.T) {
	seen := make(chan http.Header, 16)
	store := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case seen <- r.Header:
		default:
		}
		w.Header().Set("Identity", "bookstore-v2")
		if r.URL.Path == "/buy-a-book/new" {
			w.WriteHeader(http.StatusForbidden)
		}
	}))
	defer store.Close()
	ctx, cancel := context.WithCancel(t.Context())
	s := shopper{name: "bookthief", store: store.URL, interval: time.Hour}
	var counts tally
	done := make(chan struct{})
	go func() { s.shop(ctx, &counts); close(done) }()
	first := <-seen
	<-seen
	// The second answer is counted after the store has sent it.
	var got Counts
	for got.Codes["403"] == 0 {
		recorder := httptest.NewRecorder()
		counts.ServeHTTP(recorder, nil)
		if err := json.Unmarshal(recorder.Body.Bytes(), &got); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	<-done
	got.LastTime = ""
	want := Counts{Codes: map[string]int{"200": 1, "403": 1}, Identities: map[string]int{"bookstore-v2": 2}, LastCode: "403"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
	if first.Get("client-app") != "bookthief" || first.Get("User-Agent") != "Go-http-client/1.1" {
		t.Errorf("headers: client-app %q, user-agent %q", first.Get("client-app"), first.Get("User-Agent"))
	}
}

// command runs the program as a shell would.
func command(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	cmd := root()
	var out, diag bytes.Buffer
	cmd.SetArgs(args)
	cmd.SetOut(&out)
	cmd.SetErr(&diag)
	err = cmd.ExecuteContext(t.Context())
	return out.String(), diag.String(), err
}

func TestLoadCountsAnswers(t *testing.T) {
	connections := make(chan net.Conn, 100)
	var n int
	server := httptest.NewUnstartedServer(nil)
	ids := make(chan string, 1)
	server.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ids <- r.Header.Get("client-app")
		n++
		w.Header().Set("Identity", []string{"bookstore-v1", "bookstore-v2"}[n%2])
		if n%4 == 0 {
			w.WriteHeader(http.StatusForbidden)
		}
		if <-ids != "bookbuyer" {
			w.WriteHeader(http.StatusTeapot)
		}
	})
	server.Config.ConnState = func(conn net.Conn, state http.ConnState) {
		if state == http.StateNew {
			connections <- conn
		}
	}
	server.Start()
	defer server.Close()

	load := []string{"load", "--url", server.URL, "--requests", "8", "--concurrency", "1", "--header", "client-app: bookbuyer"}
	out, _, err := command(t, load...)
	if err != nil {
		t.Fatal(err)
	}
	var got Summary
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatalf("%s: %v", out, err)
	}
	if diff := cmp.Diff(map[string]int{"200": 6, "403": 2}, got.Codes); diff != "" || got.Requests != 8 {
		t.Errorf("%d requests, codes (-want +got):\n%s", got.Requests, diff)
	}
	if diff := cmp.Diff(map[string]int{"bookstore-v1": 4, "bookstore-v2": 4}, got.Identities); diff != "" {
		t.Errorf("identities (-want +got):\n%s", diff)
	}
	if len(got.Latency) != 4 || len(connections) != 1 {
		t.Errorf("got latencies %v over %d connections, want 4 over 1", got.Latency, len(connections))
	}
	<-connections

	if _, _, err := command(t, append(load, "--keep-alive=false")...); err != nil {
		t.Fatal(err)
	}
	if len(connections) != 8 {
		t.Errorf("without keep-alive: %d connections for 8 requests", len(connections))
	}

	out, _, err = command(t, append(load, "--fail-fast", "--requests", "0", "--duration", "1m")...)
	if !errors.Is(err, errNotAsWished) || json.Unmarshal([]byte(out), &got) != nil || got.Codes["403"] == 0 {
		t.Errorf("--fail-fast: got %v, %s; want an end at the first 403", err, out)
	}
}

func TestLoadCountsWhatHasNoAnswer(t *testing.T) {
	gone := httptest.NewServer(nil)
	gone.Close()
	out, _, err := command(t, "load", "--url", gone.URL, "--requests", "3", "--concurrency", "2")
	var got Summary
	if err != nil || json.Unmarshal([]byte(out), &got) != nil {
		t.Fatalf("got %v, %s; want status 0 and JSON", err, out)
	}
	if got.Codes["error"] != 3 || len(got.Errors) == 0 {
		t.Errorf("got codes %v, errors %v; want three errors and their reason", got.Codes, got.Errors)
	}
}

func TestLoadEndsWithItsTime(t *testing.T) {
	server := httptest.NewServer(newStore("bookstore", ""))
	defer server.Close()
	out, _, err := command(t, "load", "--url", server.URL+"/books-bought", "--requests", "0", "--duration", "500ms", "--rate", "200")
	var got Summary
	if err != nil || json.Unmarshal([]byte(out), &got) != nil {
		t.Fatalf("got %v, %s; want status 0 and JSON", err, out)
	}
	if got.Requests == 0 || got.Codes["200"] != got.Requests {
		t.Errorf("got %d requests, codes %v; want some, and only 200", got.Requests, got.Codes)
	}
}

// TestLoadMakesUpForADelay: a generator that was kept from its work for a while sends
// what is missing, and then goes on at its rate.
func TestLoadMakesUpForADelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		turns := (&load{rate: 1000}).turns(ctx)
		take := func(n int) time.Duration {
			began := time.Now()
			for range n {
				<-turns
			}
			return time.Since(began)
		}
		if took := take(10); took != 9*time.Millisecond {
			t.Errorf("the first 10 of 1000 a second took %s, want 9ms", took)
		}
		<-time.After(50 * time.Millisecond)
		if took := take(50); took != 0 {
			t.Errorf("50 that were missing after 50ms took %s, want no time", took)
		}
		if took := take(10); took < 8*time.Millisecond {
			t.Errorf("the next 10 took %s, want the rate of before", took)
		}
		stop()
		for range turns { // until it has ended
		}
	})
}

func TestCommandsRefuseBadFlags(t *testing.T) {
	cases := map[string]struct {
		args []string
		want string
	}{
		"LoadWithoutEnd":       {args: []string{"load", "--url", "x", "--requests", "0"}, want: "neither --requests nor --duration"},
		"LoadNegative":         {args: []string{"load", "--url", "x", "--requests", "-5"}, want: "--requests -5"},
		"LoadNoWorkers":        {args: []string{"load", "--url", "x", "--concurrency", "0"}, want: "--concurrency 0"},
		"LoadNegativeRate":     {args: []string{"load", "--url", "x", "--rate", "-1"}, want: "--rate -1"},
		"JobWithoutURL":        {args: []string{"job"}, want: `"url" not set`},
		"ClientWithoutAddress": {args: []string{"tcp-client"}, want: `"address" not set`},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			_, _, err := command(t, tc.args...)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want an error with %q", err, tc.want)
			}
		})
	}
}

func TestJobTellsHowItWent(t *testing.T) {
	server := httptest.NewServer(newStore("bookstore-v1", ""))
	defer server.Close()
	cases := map[string]struct {
		args   []string
		want   Line
		failed bool
	}{
		"Answered":  {args: []string{"--url", server.URL + "/books-bought"}, want: Line{Status: 200, Identity: "bookstore-v1"}},
		"Refused":   {args: []string{"--url", server.URL + "/nothing"}, want: Line{Status: 404, Refusal: "404 page not found\n"}, failed: true},
		"BadHeader": {args: []string{"--url", server.URL, "--header", "x"}, want: Line{Error: `header "x": want "name: value"`}, failed: true},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			out, _, err := command(t, append([]string{"job"}, tc.args...)...)
			if errors.Is(err, errNotAsWished) != tc.failed {
				t.Errorf("got error %v, want failure %v", err, tc.failed)
			}
			var got Line
			if err := json.Unmarshal([]byte(out), &got); err != nil {
				t.Fatalf("%s: %v", out, err)
			}
			if _, err := time.Parse(time.RFC3339Nano, got.Time); err != nil {
				t.Error(err)
			}
			got.Time = ""
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestHoldTellsNewConnectionsFromOld(t *testing.T) {
	n := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		n++ // one connection at a time, so one request at a time
		switch n {
		case 3:
			w.WriteHeader(http.StatusForbidden)
		case 4:
			w.Header().Set("Connection", "close")
		}
	}))
	defer server.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	in, out := io.Pipe()
	h := hold{request: request{url: server.URL, method: http.MethodGet, timeout: time.Minute}, interval: time.Millisecond}
	done := make(chan error, 1)
	go func() { done <- h.run(ctx, out); _ = out.Close() }()
	type seen struct {
		Status int
		Reused bool
	}
	var got []seen
	lines := json.NewDecoder(in)
	for range 5 {
		var line Line
		if err := lines.Decode(&line); err != nil {
			t.Fatal(err)
		}
		got = append(got, seen{line.Status, line.Reused})
	}
	want := []seen{{200, false}, {200, true}, {403, true}, {200, true}, {200, false}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("lines (-want +got):\n%s", diff)
	}
	cancel()
	go func() { _, _ = io.Copy(io.Discard, in) }()
	if err := <-done; err != nil {
		t.Errorf("hold: %v", err)
	}
}
