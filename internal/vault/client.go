package vault

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"time"
)

const (
	// callTimeout bounds one call, and maxAnswer what is read of its answer.
	callTimeout = 10 * time.Second
	maxAnswer   = 1 << 20
	// attempts bounds how often a call is made that Vault could not serve just now.
	attempts   = 4
	firstRetry = 200 * time.Millisecond
	// maxRedirects is how often a standby may send a call on.
	maxRedirects = 3
)

// A Config says which server to ask, and how.
type Config struct {
	// Address is https://HOST:PORT.
	Address string
	// Namespace is one of Vault's; empty for none.
	Namespace string
	// CA has the authorities of the server's certificate, PEM; empty for those of
	// the system.
	CA []byte
}

// A Client asks one server. It is safe for concurrent use.
type Client struct {
	address, namespace string
	http               *http.Client
}

// New returns a client, which connects when it is first used.
func New(cfg Config) (*Client, error) {
	address, err := url.Parse(cfg.Address)
	if err != nil || address.Scheme != "https" || address.Host == "" {
		return nil, fmt.Errorf("the address is %q; https://HOST:PORT is required, because tokens are sent there", cfg.Address)
	}
	secure := &tls.Config{MinVersion: tls.VersionTLS12}
	if len(cfg.CA) > 0 {
		secure.RootCAs = x509.NewCertPool()
		if !secure.RootCAs.AppendCertsFromPEM(cfg.CA) {
			return nil, errors.New("the CA of the server's certificate holds no certificate; PEM is required")
		}
	}
	transport := &http.Transport{
		TLSClientConfig: secure, ForceAttemptHTTP2: true, TLSHandshakeTimeout: callTimeout,
		IdleConnTimeout: time.Minute, MaxIdleConnsPerHost: 4,
	}
	return &Client{
		address: strings.TrimSuffix(cfg.Address, "/"), namespace: cfg.Namespace,
		http: &http.Client{Transport: transport, CheckRedirect: redirect},
	}, nil
}

// redirect follows a standby to the active server, with the token, and never to
// where the network could read it.
func redirect(next *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects || next.URL.Scheme != "https" {
		return http.ErrUseLastResponse
	}
	return nil
}

// Close closes connections that are not in use.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// An Error is Vault's answer to a call that it did not fulfil.
type Error struct {
	Method, Path string
	Status       int
	// Words are Vault's own.
	Words []string
	// RetryAfter is when Vault wants the next call at the earliest; zero where it
	// does not say.
	RetryAfter time.Duration
}

// Error returns the call, the status and Vault's words.
func (e *Error) Error() string {
	text := fmt.Sprintf("%s %s: Vault answered %d", e.Method, e.Path, e.Status)
	if len(e.Words) > 0 {
		text += ": " + strings.Join(e.Words, "; ")
	}
	return text
}

// Busy reports whether Vault refused because it is asked too often.
func (e *Error) Busy() bool { return e.Status == http.StatusTooManyRequests }

// Denied reports whether the token is not, or no longer, good for the call.
func (e *Error) Denied() bool { return e.Status == http.StatusForbidden }

// passing reports whether the same call may be fulfilled a moment later: Vault is
// sealed, a standby without an active one, behind in replication, or busy.
func (e *Error) passing() bool {
	return e.Status >= http.StatusInternalServerError || e.Status == http.StatusPreconditionFailed || e.Busy()
}

// A call is one request.
type call struct {
	method, path, token string
	body                any // nil for none
	// secret is something in the body that no error may repeat.
	secret string
}

// do makes a call, again after a while where that may help, and decodes the data
// of the answer. The error is an *Error where Vault answered.
func (c *Client) do(ctx context.Context, call call, into any) error {
	var body []byte
	if call.body != nil {
		var err error
		if body, err = json.Marshal(call.body); err != nil {
			return fmt.Errorf("encode the call: %w", err)
		}
	}
	for attempt := 1; ; attempt++ {
		err := c.try(ctx, call, body, into)
		if err == nil {
			return nil
		}
		answer, answered := errors.AsType[*Error](err)
		if attempt == attempts || ctx.Err() != nil || answered && !answer.passing() || DistrustsServer(err) {
			return err
		}
		wait := firstRetry << (attempt - 1)
		if answered {
			wait = max(wait, answer.RetryAfter)
		}
		wait += rand.N(wait / 2) //nolint:gosec // spreads load, keeps no secret
		if end, ok := ctx.Deadline(); ok && time.Until(end) <= wait {
			return err // rather than let the caller wait for nothing
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(wait):
		}
	}
}

// DistrustsServer reports whether an error is that the server's certificate was
// refused, which waiting does not mend.
func DistrustsServer(err error) bool {
	_, refused := errors.AsType[*tls.CertificateVerificationError](err)
	return refused
}

// try makes a call once.
func (c *Client) try(ctx context.Context, call call, body []byte, into any) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, call.method, c.address+"/v1/"+call.path, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("%s %s: %w", call.method, call.path, err)
	}
	request.Header.Set("X-Vault-Request", "true")
	if call.token != "" {
		request.Header.Set("X-Vault-Token", call.token)
	}
	if c.namespace != "" {
		request.Header.Set("X-Vault-Namespace", c.namespace)
	}
	response, err := c.http.Do(request)
	if err != nil {
		return fmt.Errorf("ask Vault: %w", err) // it holds the method and the address
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("%s %s: read the answer: %w", call.method, call.path, err)
	}
	if response.StatusCode < 200 || response.StatusCode > 299 {
		return call.refused(response, answer)
	}
	if into == nil {
		return nil
	}
	if err := json.Unmarshal(answer, into); err != nil {
		return fmt.Errorf("%s %s: Vault's answer is not what its API promises", call.method, call.path)
	}
	return nil
}
