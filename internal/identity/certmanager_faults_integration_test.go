//go:build integration

package identity

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"k8s.io/client-go/rest"
)

// What cert-manager says of an issuer that does not work reaches whoever asks.
func TestCertManagerIssuerDoesNotWork(t *testing.T) {
	startCertManager(t)
	const name = "cm-broken"
	m := newMeshIssuer(t, name)
	newIssuer(t, name)
	m.cfg.Roots = string(encodeCertificates(testCA(t).Roots()...))
	cases := map[string]struct {
		reason string
		issuer string
		want   string
	}{
		"Missing":  {reason: "There is no such issuer yet.", issuer: "nobody", want: `Referenced "Issuer" not found`},
		"Fails":    {reason: "An issuer of kind SelfSigned wants the key, which stays in the pod.", issuer: "self-signed", want: "cert-manager.io/private-key-secret-name"},
		"Stranger": {reason: "Its root is none of the mesh's.", issuer: "mesh", want: "unknown authority"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			with := m
			with.cfg.Issuer.Name = tc.issuer
			_, err := issueTo(t, with.open(t), "cart", 5*time.Second)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%s\ngot %v, want it to say %q", tc.reason, err, tc.want)
			}
			wantNoRequests(t, m.home.Namespace)
		})
	}
	// At the first start, whoever starts the mesh hears the same.
	with := m
	with.cfg.Roots, with.cfg.Issuer.Name = "", "self-signed"
	if _, err := OpenCertManager(t.Context(), with.cfg); err == nil || !strings.Contains(err.Error(), "private-key-secret-name") {
		t.Errorf("opened with an issuer that fails: %v", err)
	}
	wantNoRequests(t, name)
}

// No controller runs at all: what is asked for times out and is taken back, and
// nobody else waits for it longer than for a turn.
func TestCertManagerIsDown(t *testing.T) {
	const name = "cm-down"
	m := newMeshIssuer(t, name)
	m.cfg.Roots = string(encodeCertificates(testCA(t).Roots()...))
	c := m.open(t)
	c.queue = newQueue(2, 1)
	results := make(chan error, 3)
	for _, account := range []string{"a", "b", "c"} {
		go func() {
			_, err := issueTo(t, c, account, 3*time.Second)
			results <- err
		}()
	}
	eventually(t, "two have a turn, one waits", func() error {
		c.queue.mu.Lock()
		defer c.queue.mu.Unlock()
		if n := len(requests(t, name)); n != 2 || c.queue.waiting != 1 {
			return fmt.Errorf("%d requests, %d wait", n, c.queue.waiting)
		}
		return nil
	})
	_, err := issueTo(t, c, "d", 3*time.Second)
	wantRefusal(t, "a fourth has no place", errors.Unwrap(err), codes.ResourceExhausted, ReasonBusy)
	for range 3 {
		if err := <-results; err == nil {
			t.Error("signed without a controller")
		}
	}
	wantNoRequests(t, name)
}

// mortal is a connection to the API server that can be cut as death cuts it.
type mortal struct {
	http.RoundTripper
	dead *atomic.Bool
}

func (m mortal) RoundTrip(r *http.Request) (*http.Response, error) {
	if m.dead.Load() {
		return nil, errors.New("dead")
	}
	return m.RoundTripper.RoundTrip(r)
}

// A replica that dies leaves its requests behind; another removes them.
func TestCertManagerReplicaDies(t *testing.T) {
	const name = "cm-death"
	m := newMeshIssuer(t, name)
	m.cfg.Roots = string(encodeCertificates(testCA(t).Roots()...))
	dead := &atomic.Bool{}
	dying := m
	config := rest.CopyConfig(m.config)
	config.Wrap(func(next http.RoundTripper) http.RoundTripper { return mortal{RoundTripper: next, dead: dead} })
	dying.cfg.Client = certManagerClient(t, config)
	first, err := OpenCertManager(t.Context(), dying.cfg)
	must(t, err)
	result := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	request, template := asked(t, "cart")
	go func() {
		_, err := first.Issue(ctx, request, template)
		result <- err
	}()
	eventually(t, "a request", func() error {
		if n := len(requests(t, name)); n != 1 {
			return fmt.Errorf("there are %d", n)
		}
		return nil
	})
	dead.Store(true)
	cancel()
	<-result
	if n := len(requests(t, name)); n != 1 {
		t.Fatalf("the dead replica left %d requests, want one", n)
	}

	other, _ := newHome(t, "cm-death-other", chosen...)
	theirs := m.cfg
	theirs.Home = other
	stranger, err := OpenCertManager(t.Context(), theirs)
	must(t, err)
	stranger.cfg.Client = certManagerClient(t, outriggerd("cm-death-other"))
	second, err := OpenCertManager(t.Context(), m.cfg)
	must(t, err)
	n, err := second.Clean(t.Context(), time.Now().Add(-time.Hour))
	if must(t, err); n != 0 {
		t.Errorf("%d requests of the moment were removed", n)
	}
	n, err = stranger.Clean(t.Context(), time.Now().Add(time.Hour))
	if must(t, err); n != 0 {
		t.Errorf("another mesh removed %d requests", n)
	}
	second.abandoned = time.Millisecond
	run(t, second)
	eventually(t, "the abandoned request is removed", func() error {
		if n := len(requests(t, name)); n != 0 {
			return fmt.Errorf("%d are left", n)
		}
		return nil
	})
}
