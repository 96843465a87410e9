package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// identityHeader is where a store says which one it is.
const identityHeader = "Identity"

// A request is what the commands that call something have in common.
type request struct {
	url     string
	method  string
	body    string
	headers []string // "name: value"
	timeout time.Duration
	http2   bool
}

func (q *request) flags(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&q.url, "url", "", "what to ask for: "+schemes)
	flags.StringVar(&q.method, "method", http.MethodGet, "HTTP method")
	flags.StringVar(&q.body, "body", "", "body of each request")
	flags.StringArrayVar(&q.headers, "header", nil, `"name: value", may be given several times`)
	flags.BoolVar(&q.http2, "http2", false, "speak HTTP/2 to an http URL, without asking first")
	flags.DurationVar(&q.timeout, "timeout", 5*time.Second, "how long to wait for an answer")
	cobra.CheckErr(cmd.MarkFlagRequired("url"))
}

// A reply is what came of one request. Status is 0 where Err says why there
// was no answer.
type reply struct {
	Status   int
	Identity string
	Refusal  string // beginning of the body, where Status is not 2xx
	Reused   bool   // the request went over a connection that had carried another
	Took     time.Duration
	Err      error
}

// good reports whether the request was answered with a status of success.
func (r reply) good() bool { return r.Err == nil && r.Status >= 200 && r.Status <= 299 }

// code is the status for counting: "200", or "error".
func (r reply) code() string {
	if r.Err != nil {
		return "error"
	}
	return fmt.Sprint(r.Status)
}

// newClient returns a client that keeps up to connections open, or none at all.
// It follows no redirect, since a test wants the first answer, and uses no proxy.
func newClient(keepAlive bool, connections int) *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			DisableKeepAlives:   !keepAlive,
			MaxIdleConnsPerHost: connections,
			MaxConnsPerHost:     connections,
			TLSClientConfig:     ownTLS(),
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// newHTTP2Client is like newClient, and speaks HTTP/2 without TLS.
func newHTTP2Client(keepAlive bool, connections int) *http.Client {
	client := newClient(keepAlive, connections)
	transport, protocols := client.Transport.(*http.Transport), new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	transport.Protocols = protocols
	return client
}

// do sends the request once and reads the whole answer.
func (q *request) do(ctx context.Context, client *http.Client) (r reply) {
	start := time.Now()
	defer func() { r.Took = time.Since(start) }()
	ctx, cancel := context.WithTimeout(ctx, q.timeout)
	defer cancel()
	trace := &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) { r.Reused = info.Reused }}
	req, err := q.make(httptrace.WithClientTrace(ctx, trace))
	if err != nil {
		return reply{Err: err}
	}
	resp, err := client.Do(req) //nolint:bodyclose // read closes it
	if err != nil {
		r.Err = err
		return r
	}
	r.read(resp)
	return r
}

// make returns the request as HTTP has it.
func (q *request) make(ctx context.Context) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, q.method, q.url, strings.NewReader(q.body))
	if err != nil {
		return nil, err
	}
	for _, header := range q.headers {
		name, value, ok := strings.Cut(header, ":")
		if !ok {
			return nil, fmt.Errorf("header %q: want \"name: value\"", header)
		}
		req.Header.Set(name, strings.TrimSpace(value))
		if strings.EqualFold(name, "Host") {
			req.Host = strings.TrimSpace(value)
		}
	}
	return req, nil
}

// read takes what an answer says, to its end.
func (r *reply) read(resp *http.Response) {
	defer func() { _ = resp.Body.Close() }()
	r.Status, r.Identity = resp.StatusCode, resp.Header.Get(identityHeader)
	// Read to its end, or the connection could not be used again.
	beginning, err := io.ReadAll(io.LimitReader(resp.Body, 1024))
	if err == nil {
		_, err = io.Copy(io.Discard, resp.Body)
	}
	if err != nil {
		r.Err = fmt.Errorf("read body of the answer: %w", err)
	}
	if !r.good() {
		r.Refusal = string(beginning)
	}
}
