package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
	"github.com/outrigger-mesh/outrigger/internal/signing"
	"github.com/outrigger-mesh/outrigger/internal/xds"
)

// A pod of the mesh may be hostile: anybody who may create pods has a certificate.
func TestHostileProxyIsBounded(t *testing.T) {
	invent := func(n, from int) []string {
		names := make([]string, n)
		for i := range names {
			names[i] = fmt.Sprintf("town/invented-%d:80", from+i)
		}
		return names
	}
	cases := map[string]struct {
		reason string
		attack func(*envoy)
		want   codes.Code
	}{
		"LongNames": {
			reason: "What is subscribed to is remembered, so its size must have an end.",
			attack: func(e *envoy) { e.subscribe(xds.Endpoints, strings.Repeat("n", maxName+1)) },
			want:   codes.InvalidArgument,
		},
		"LongNamesUnsubscribed": {
			reason: "The same by another field.",
			attack: func(e *envoy) { e.unsubscribe(xds.Cluster, strings.Repeat("n", maxName+1)) },
			want:   codes.InvalidArgument,
		},
		"ManyNames": {
			reason: "Names that nobody knows are remembered until something has them.",
			attack: func(e *envoy) {
				for n := 0; n <= maxAsked; n += 10_000 {
					e.subscribe(xds.Endpoints, invent(10_000, n)...)
				}
			},
			want: codes.ResourceExhausted,
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			town := newTown(w.ca)
			pod := town.pod("a-1", "a")
			w.publish(t, town, pod)
			e := w.join(t, pod)
			tc.attack(e)
			for {
				select {
				case <-e.responses: // the answers until then
					continue
				case err := <-e.ended:
					if got := status.Code(err); got != tc.want {
						t.Errorf("%s\nthe stream ended with %v, want %s", tc.reason, err, tc.want)
					}
				case <-time.After(patience):
					t.Errorf("%s\nthe stream goes on", tc.reason)
				}
				return
			}
		})
	}
}

// unheard returns a stream whose proxy is to have a configuration, and that
// configuration; what the stream sends goes nowhere.
func unheard(t *testing.T) (*stream, *xds.Set) {
	t.Helper()
	town := newTown(newTestCA(t))
	pod := town.pod("a-1", "a")
	view, _ := town.snapshot(t).View(pod.ID)
	set, err := xds.NewCache().Set(view)
	must(t, err)
	s := newWorld(t, nil).newStream(newProxy(pod.ID, vouched{}, ""), func(any) error { return nil })
	s.proxy.retarget(set, s.proxy.opened)
	return s, set
}

func TestUnansweredResponsesCostLittle(t *testing.T) {
	s, _ := unheard(t)
	must(t, s.handle(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: xds.Endpoints.URL()}))
	must(t, s.advance())
	names := make([]string, 1000)
	for i := range names {
		names[i] = fmt.Sprintf("town/invented-%d:80", i)
	}
	must(t, s.handle(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: xds.Endpoints.URL(), ResourceNamesSubscribe: names}))
	pending := s.feeds[xds.Endpoints].pending
	if n := len(pending); n != 1 {
		t.Fatalf("%d responses wait for an answer, want 1", n)
	}
	if n := cap(pending[0].removed); n > 2*mostNames {
		t.Errorf("a response without an answer holds %d names", n)
	}
	if text := pending[0].names(); !strings.HasSuffix(text, " ...") {
		t.Errorf("a log would not tell that there were more: %s", text)
	}
}

// A change of trust counts who has acknowledged it, so a proxy must not be able to
// acknowledge what it was not sent, and for itself alone.
func TestForgedAcknowledgements(t *testing.T) {
	s, set := unheard(t)
	say := func(nonce string) {
		must(t, s.handle(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: xds.Cluster.URL(), ResponseNonce: nonce}))
		must(t, s.advance())
		s.report()
	}
	say("1") // before there is a response
	pending := s.feeds[xds.Cluster].pending
	if len(pending) == 0 {
		t.Fatal("nothing was sent")
	}
	for _, forged := range []string{"", "0", "99", pending[0].nonce + " ", "-1"} {
		say(forged)
		if got := s.proxy.status().Acknowledged; len(got) != 0 {
			t.Errorf("the nonce %q acknowledges %v", forged, got)
		}
	}
	for _, flight := range s.feeds[xds.Cluster].pending {
		say(flight.nonce)
	}
	if got := s.proxy.status().Acknowledged; got[xds.Cluster.String()] != set.Version() || len(got) != 1 {
		t.Errorf("the real ones acknowledge %v", got)
	}
}

func TestNewestStreamsOfAPodStay(t *testing.T) {
	w := newWorld(t, nil)
	town := newTown(w.ca)
	pod := town.pod("a-1", "a")
	w.publish(t, town, pod)
	streams := make([]*envoy, maxPodStreams+1)
	for i := range streams {
		streams[i] = w.join(t, pod)
		streams[i].subscribe(xds.Cluster)
		streams[i].hear()
	}
	if got := status.Code(streams[0].end()); got != codes.ResourceExhausted {
		t.Errorf("the oldest stream ended with %s", got)
	}
	eventually(t, "the others stay", func() bool { return value(t, w.metrics.connected) == maxPodStreams })
	town.service("shop", 1)
	w.publish(t, town, pod)
	for _, e := range streams[1:] {
		e.hear()
	}
}

// A pod that opens streams in a loop must not take the turns of all others.
func TestOpeningStreamsIsLimitedByCaller(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.CallerRate, c.CallerBurst = 1e-9, 2 })
	town := newTown(w.ca)
	loud, quiet := town.pod("a-1", "a"), town.pod("a-2", "a")
	w.publish(t, town, loud)
	counter := w.metrics.refused.WithLabelValues(reasonRate)
	for n := range 3 {
		e := w.join(t, loud) // a new connection, and a new certificate of the pod
		e.subscribe(xds.Cluster)
		if n < 2 {
			e.hear()
		} else if got := status.Code(e.end()); got != codes.ResourceExhausted {
			t.Errorf("one stream too many ended with %s", got)
		}
	}
	if n := value(t, counter); n != 1 {
		t.Errorf("the refusal was counted %v times", n)
	}
	e := w.join(t, quiet)
	e.subscribe(xds.Cluster)
	e.hear()
}

// Anybody who reaches the port may hold connections open.
func TestIdleConnectionsAreClosed(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.IdleTime = 100 * time.Millisecond })
	town := newTown(w.ca)
	pod := town.pod("a-1", "a")
	w.publish(t, town, pod)
	proxy := w.join(t, pod)
	proxy.subscribe(xds.Cluster)
	proxy.hear()

	conn, err := tls.Dial("tcp", w.address, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	must(t, err)
	defer conn.Close()
	_, err = conn.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"))
	must(t, err)
	_ = conn.SetReadDeadline(time.Now().Add(patience))
	if _, err = io.Copy(io.Discard, conn); err != nil {
		t.Errorf("a connection without a call: %v; want the server to close it", err)
	}
	town.service("shop", 1)
	w.publish(t, town, pod)
	proxy.hear() // one with a stream stays
}

// Anybody who reaches the port may begin to ask for a certificate.
func TestCallersWithoutCertificateAreBounded(t *testing.T) {
	w := newWorld(t, func(c *Config) {
		c.SignRate, c.SignBurst, c.ReadTime = 1e-9, 1, 50*time.Millisecond
	})
	begin := func() error {
		stream, err := w.dial(t, nil).NewStream(t.Context(), &grpc.StreamDesc{ClientStreams: true}, signing.Certificates_Sign_FullMethodName)
		must(t, err)
		answer := make(chan error, 1)
		go func() { answer <- stream.RecvMsg(&signing.SignResponse{}) }()
		select {
		case err := <-answer:
			return err
		case <-time.After(patience):
			return errors.New("no answer")
		}
	}
	if err := begin(); status.Code(err) != codes.Canceled {
		t.Errorf("a call whose message never comes ends with %v", err)
	}
	counter := w.metrics.signed.WithLabelValues("refused", reasonRate)
	if err := begin(); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a call too many ends with %v, without its message", err)
	}
	if n := value(t, counter); n != 1 {
		t.Errorf("it was counted %v times", n)
	}
}

// slowSigner is an issuer that answers when nobody waits any more.
type slowSigner struct{}

func (slowSigner) Current() (*signing.Authority, error) { return testAuthority, nil }

func (slowSigner) Sign(ctx context.Context, _ string, _ []byte) (signing.Signed, error) {
	<-ctx.Done()
	return signing.Signed{}, refuse(codes.Unavailable, "issuer-failed", "%w", context.Cause(ctx))
}

// An issuer may take longer than a message may, but not for ever.
func TestSlowIssuerHasItsTime(t *testing.T) {
	w := newWorld(t, func(c *Config) {
		c.Signer, c.ReadTime, c.SignTime = slowSigner{}, 50*time.Millisecond, 500*time.Millisecond
	})
	started := time.Now()
	ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer a")
	_, err := signing.NewCertificatesClient(w.dial(t, nil)).Sign(ctx, &signing.SignRequest{Csr: []byte("csr")})
	if code := status.Code(err); code != codes.Unavailable && code != codes.DeadlineExceeded {
		t.Errorf("the call ends with %v", err)
	}
	if took := time.Since(started); took < 500*time.Millisecond {
		t.Errorf("the issuer had %s; want all of its time", took)
	}
}

type brokenPods struct{ testPods }

func (brokenPods) Identity(context.Context, mesh.ProxyID) (mesh.Identity, bool, error) {
	panic("a defect")
}

func TestDefectEndsOneCallOnly(t *testing.T) {
	w := newWorld(t, func(c *Config) {
		c.Pods = brokenPods{}
		c.Signer = signerFunc(func(string, []byte) (signing.Signed, error) { panic("another") })
	})
	town := newTown(w.ca)
	pod := town.pod("a-1", "a")
	w.publish(t, town, pod)
	healthy := w.join(t, pod)
	healthy.subscribe(xds.Cluster)
	healthy.hear()

	broken := w.join(t, newTown(w.ca).pod("unknown", "a"))
	broken.subscribe(xds.Cluster)
	if got := status.Code(broken.end()); got != codes.Internal {
		t.Errorf("the stream that met it ended with %s", got)
	}
	ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer a")
	if _, err := signing.NewCertificatesClient(w.dial(t, nil)).Sign(ctx, &signing.SignRequest{Csr: []byte("csr")}); status.Code(err) != codes.Internal {
		t.Errorf("the call that met it ended with %v", err)
	}
	town.service("shop", 1)
	w.publish(t, town, pod)
	healthy.hear()
}
