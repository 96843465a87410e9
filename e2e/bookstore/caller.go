package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/websocket"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// schemes are what a URL may begin with.
const schemes = "http, https, ws, tcp, grpc or grpcs; https and grpcs want the certificate of --tls"

// A caller sends requests and waits for their answers.
type caller interface {
	// call sends one. Only an HTTP caller and one that keeps nothing open may be
	// asked by several goroutines.
	call(ctx context.Context) reply
	close()
}

// caller returns a caller for the scheme of the request's URL. With keepAlive it
// goes on with its connections, as many as that, for as long as they last.
func (q *request) caller(keepAlive bool, connections int) (caller, error) {
	target, err := url.Parse(q.url)
	if err != nil {
		return nil, fmt.Errorf("--url %s: %w", q.url, err)
	}
	switch target.Scheme {
	case "http", "https":
		if keepAlive && connections == 1 && target.Scheme == "http" && !q.http2 {
			return &keptCaller{request: q, address: target.Host}, nil
		}
		client := newClient
		if q.http2 {
			client = newHTTP2Client
		}
		return &httpCaller{request: q, client: client(keepAlive, connections)}, nil
	case "tcp":
		return &lineCaller{request: q, keepAlive: keepAlive, open: dialTCP(target.Host)}, nil
	case "ws":
		return &lineCaller{request: q, keepAlive: keepAlive, open: dialWebSocket(q.url)}, nil
	case "grpc":
		return newGRPCCaller(q, target.Host, keepAlive, insecure.NewCredentials())
	case "grpcs":
		return newGRPCCaller(q, target.Host, keepAlive, credentials.NewTLS(ownTLS()))
	default:
		return nil, fmt.Errorf("--url %s: want %s", q.url, schemes)
	}
}

type httpCaller struct {
	*request
	client *http.Client
}

func (c *httpCaller) call(ctx context.Context) reply { return c.do(ctx, c.client) }

func (c *httpCaller) close() { c.client.CloseIdleConnections() }

// A keptCaller speaks HTTP/1.1 over a connection of its own, and gives it up only
// when the other side says so or closes it. A client of net/http may also do that
// when the machine is busy.
type keptCaller struct {
	*request
	address string
	kept    *lines
}

func (c *keptCaller) call(ctx context.Context) (r reply) {
	start := time.Now()
	defer func() { r.Took = time.Since(start) }()
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	r, unsent := c.over(ctx, start.Add(c.timeout))
	if unsent {
		// The connection had been closed before: as any client does, try another.
		r, _ = c.over(ctx, start.Add(c.timeout))
	}
	return r
}

// over makes the call over the connection that there is, or a new one. It reports
// whether that was closed without a word.
func (c *keptCaller) over(ctx context.Context, until time.Time) (r reply, unsent bool) {
	r.Reused = c.kept != nil
	if c.kept == nil {
		opened, err := openTCP(ctx, c.address)
		if err != nil {
			return reply{Err: err}, false
		}
		c.kept = opened
	}
	resp, err := c.exchange(ctx, until) //nolint:bodyclose // read closes it
	if err != nil {
		c.close()
		return reply{Err: err, Reused: r.Reused}, r.Reused && (errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF))
	}
	r.read(resp)
	if r.Err != nil || resp.Close {
		c.close()
	}
	return r, false
}

func (c *keptCaller) exchange(ctx context.Context, until time.Time) (*http.Response, error) {
	req, err := c.make(ctx)
	if err == nil {
		err = c.kept.conn.SetDeadline(until)
	}
	if err == nil {
		err = req.Write(c.kept.conn)
	}
	if err != nil {
		return nil, err
	}
	return http.ReadResponse(c.kept.reader, req)
}

func (c *keptCaller) close() {
	if c.kept != nil {
		c.kept.close()
		c.kept = nil
	}
}

// A conversation says something and hears it again.
type conversation interface {
	// echo returns what was heard before: the name of who speaks first.
	echo(word string, until time.Time) (banner string, err error)
	close()
}

// A lineCaller has conversations. A reply of status 200 is a word that came back.
type lineCaller struct {
	*request
	keepAlive bool
	open      func(ctx context.Context) (conversation, error)

	// What is kept open, for one call at a time.
	mu     sync.Mutex
	kept   conversation
	banner string
}

func (c *lineCaller) call(ctx context.Context) (r reply) {
	start := time.Now()
	defer func() { r.Took = time.Since(start) }()
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	if !c.keepAlive {
		talk, err := c.open(ctx)
		if err != nil {
			return failed(err)
		}
		defer talk.close()
		banner, err := talk.echo(word, start.Add(c.timeout))
		if err != nil {
			return failed(err)
		}
		return reply{Status: http.StatusOK, Identity: banner}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	r.Reused = c.kept != nil
	if c.kept == nil {
		if c.kept, r.Err = c.open(ctx); r.Err != nil {
			c.kept = nil
			return failed(r.Err)
		}
	}
	banner, err := c.kept.echo(word, start.Add(c.timeout))
	if err != nil {
		c.kept.close()
		c.kept, c.banner = nil, ""
		return reply{Status: failed(err).Status, Err: err, Reused: r.Reused}
	}
	if banner != "" {
		c.banner = banner
	}
	return reply{Status: http.StatusOK, Identity: c.banner, Reused: r.Reused}
}

func (c *lineCaller) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.kept != nil {
		c.kept.close()
	}
}

// word is what is said.
const word = "how are you"

// A refused is an answer of HTTP that is not the one that opens a conversation.
type refused struct {
	status int
	body   string
}

func (r *refused) Error() string { return fmt.Sprintf("refused with status %d", r.status) }

// failed is the reply that an error stands for.
func failed(err error) reply {
	if answer, ok := errors.AsType[*refused](err); ok {
		return reply{Status: answer.status, Refusal: answer.body}
	}
	return reply{Err: err}
}

type lines struct {
	conn   net.Conn
	reader *bufio.Reader
}

func dialTCP(address string) func(context.Context) (conversation, error) {
	return func(ctx context.Context) (conversation, error) {
		opened, err := openTCP(ctx, address)
		if err != nil {
			return nil, err
		}
		return opened, nil
	}
}

func openTCP(ctx context.Context, address string) (*lines, error) {
	if _, _, err := net.SplitHostPort(address); err != nil {
		address = net.JoinHostPort(address, "80")
	}
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	return &lines{conn: conn, reader: bufio.NewReader(conn)}, nil
}

func (l *lines) echo(word string, until time.Time) (banner string, err error) {
	if err := l.conn.SetDeadline(until); err != nil {
		return "", err
	}
	if _, err := fmt.Fprintln(l.conn, word); err != nil {
		return "", err
	}
	for {
		line, err := l.reader.ReadString('\n')
		if err != nil {
			return "", err
		}
		if line = strings.TrimSpace(line); line == word {
			return banner, nil
		}
		banner = line
	}
}

func (l *lines) close() { _ = l.conn.Close() }

type messages struct {
	conn     *websocket.Conn
	identity string
}

func dialWebSocket(url string) func(context.Context) (conversation, error) {
	return func(ctx context.Context) (conversation, error) {
		var dialer websocket.Dialer
		conn, answer, err := dialer.DialContext(ctx, url, nil)
		if err != nil && answer != nil {
			body := make([]byte, 1024)
			n, _ := answer.Body.Read(body) // gorilla has read what there is of it
			_ = answer.Body.Close()
			return nil, &refused{status: answer.StatusCode, body: string(body[:n])}
		}
		if err != nil {
			return nil, err
		}
		return &messages{conn: conn, identity: answer.Header.Get(identityHeader)}, nil
	}
}

func (m *messages) echo(word string, until time.Time) (banner string, err error) {
	if err := errors.Join(m.conn.SetReadDeadline(until), m.conn.SetWriteDeadline(until)); err != nil {
		return "", err
	}
	if err := m.conn.WriteMessage(websocket.TextMessage, []byte(word)); err != nil {
		return "", err
	}
	_, message, err := m.conn.ReadMessage()
	if err == nil && string(message) != word {
		err = fmt.Errorf("heard %q after %q was said", message, word)
	}
	return m.identity, err
}

func (m *messages) close() { _ = m.conn.Close() }
