package server

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
	"github.com/outrigger-mesh/outrigger/internal/signing"
	"github.com/outrigger-mesh/outrigger/internal/xds"
)

func TestWhoMayOpenAStream(t *testing.T) {
	w := newWorld(t, nil)
	town := newTown(w.ca)
	pod, replica := town.pod("a-1", "a"), town.pod("a-2", "a")
	w.publish(t, town, pod)
	uri := pod.Identity.URI(trustDomain)
	other := mesh.ProxyID{Namespace: "town", Pod: "new", UID: "uid-new"}
	w.pods[other] = mesh.Identity{Namespace: "town", ServiceAccount: "b"}

	cases := map[string]struct {
		reason      string
		certificate *tls.Certificate
		node        string
		want        codes.Code
		counted     string
	}{
		"NoCertificate": {
			reason: "The port takes clients without a certificate, for signing only.",
			node:   pod.ID.String(), want: codes.Unauthenticated, counted: reasonNoCertificate,
		},
		"OtherReplica": {
			reason:      "With the service account alone, one replica could speak for another.",
			certificate: w.ca.leaf(t, uri, pod.ID.UID, time.Hour),
			node:        replica.ID.String(), want: codes.PermissionDenied, counted: reasonOtherPod,
		},
		"OtherName": {
			reason:      "The uid alone is not enough: the pod must be of that name.",
			certificate: w.ca.leaf(t, uri, pod.ID.UID, time.Hour),
			node:        "town/a-2/" + pod.ID.UID, want: codes.PermissionDenied, counted: reasonUnknownPod,
		},
		"NoUID": {
			reason:      "A certificate that names no pod speaks for none.",
			certificate: w.ca.leaf(t, uri, "", time.Hour),
			node:        pod.ID.String(), want: codes.PermissionDenied, counted: reasonOtherPod,
		},
		"OtherServiceAccount": {
			reason:      "The pod's service account is what the certificate must be for.",
			certificate: w.ca.leaf(t, "spiffe://cluster.local/ns/town/sa/b", pod.ID.UID, time.Hour),
			node:        pod.ID.String(), want: codes.PermissionDenied, counted: reasonOtherPod,
		},
		"OtherServiceAccountOfAPodLookedUp": {
			reason:      "The same holds for a pod that no snapshot has yet.",
			certificate: w.ca.leaf(t, uri, other.UID, time.Hour),
			node:        other.String(), want: codes.PermissionDenied, counted: reasonOtherPod,
		},
		"OtherNamespace": {
			reason:      "An identity of another namespace is not this pod's.",
			certificate: w.ca.leaf(t, "spiffe://cluster.local/ns/city/sa/a", pod.ID.UID, time.Hour),
			node:        pod.ID.String(), want: codes.PermissionDenied, counted: reasonOtherPod,
		},
		"UnknownPod": {
			reason:      "A pod that is nowhere has no configuration.",
			certificate: w.ca.leaf(t, uri, "uid-gone", time.Hour),
			node:        "town/gone/uid-gone", want: codes.PermissionDenied, counted: reasonUnknownPod,
		},
		"BadNode": {
			reason:      "A node id must name a pod.",
			certificate: w.ca.leaf(t, uri, pod.ID.UID, time.Hour),
			node:        "sidecar~10.0.0.1", want: codes.InvalidArgument, counted: reasonBadNode,
		},
		"NoNode": {
			reason:      "The first request must say who is asking.",
			certificate: w.ca.leaf(t, uri, pod.ID.UID, time.Hour),
			want:        codes.InvalidArgument, counted: reasonBadNode,
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			before := value(t, w.metrics.refused.WithLabelValues(tc.counted))
			e := w.connect(t, tc.certificate, tc.node)
			e.subscribe(xds.Cluster)
			if got := status.Code(e.end()); got != tc.want {
				t.Errorf("%s\nwant status %s, got %s", tc.reason, tc.want, got)
			}
			if n := value(t, w.metrics.refused.WithLabelValues(tc.counted)) - before; n != 1 {
				t.Errorf("%s\nwant the reason %s counted once, got %v", tc.reason, tc.counted, n)
			}
		})
	}
}

// borrowers are pods that have their certificates from elsewhere, and where they
// are.
type borrowers struct {
	Pods
	at  map[mesh.ProxyID]string
	err error
}

func (b borrowers) Located(_ context.Context, id mesh.ProxyID, at netip.Addr) (bool, error) {
	return b.at[id] == at.String(), b.err
}

// TestCertificateThatNamesNoPod has certificates as SPIRE and csi-driver-spiffe
// make them: with a service account, and without the pod's uid.
func TestCertificateThatNamesNoPod(t *testing.T) {
	at := map[mesh.ProxyID]string{}
	w := newWorld(t, func(c *Config) { c.Pods = borrowers{Pods: c.Pods, at: at} })
	broken := newWorld(t, func(c *Config) {
		c.Pods = borrowers{Pods: c.Pods, err: errors.New("no API server")}
	})
	town := newTown(w.ca)
	here, there, ordinary, other := town.pod("a-1", "a"), town.pod("a-2", "a"), town.pod("a-3", "a"), town.pod("b-1", "b")
	at[here.ID], at[there.ID], at[other.ID] = "127.0.0.1", "10.0.0.2", "127.0.0.1"
	w.publish(t, town, here)
	broken.publish(t, town, here)
	svid := w.ca.leaf(t, here.Identity.URI(trustDomain), "", time.Hour)

	e := w.connect(t, svid, here.ID.String())
	e.subscribe(xds.Cluster)
	e.hear()
	for name, tc := range map[string]struct {
		reason string
		in     *world
		node   mesh.ProxyID
		want   codes.Code
	}{
		"Replica":  {reason: "A pod of the same account calls from another address.", in: w, node: there.ID, want: codes.PermissionDenied},
		"Ordinary": {reason: "A pod whose certificates name it must show one that does.", in: w, node: ordinary.ID, want: codes.PermissionDenied},
		"Account":  {reason: "An address does not make up for the wrong account.", in: w, node: other.ID, want: codes.PermissionDenied},
		"Unknown":  {reason: "While nobody can say where the pod is, it is nowhere.", in: broken, node: here.ID, want: codes.Unavailable},
	} {
		t.Run(name, func(t *testing.T) {
			certificate := svid
			if tc.in == broken {
				certificate = broken.ca.leaf(t, here.Identity.URI(trustDomain), "", time.Hour)
			}
			e := tc.in.connect(t, certificate, tc.node.String())
			e.subscribe(xds.Cluster)
			if got := status.Code(e.end()); got != tc.want {
				t.Errorf("%s\nwant status %s, got %s", tc.reason, tc.want, got)
			}
		})
	}
}

func TestForeignCertificateFailsTheHandshake(t *testing.T) {
	w := newWorld(t, nil)
	town := newTown(w.ca)
	pod := town.pod("a-1", "a")
	w.publish(t, town, pod)
	for name, certificate := range map[string]*tls.Certificate{
		"OtherTrustDomain": w.ca.leaf(t, "spiffe://elsewhere/ns/town/sa/a", pod.ID.UID, time.Hour), // the root may be shared
		"OtherRoot":        newTestCA(t).leaf(t, pod.Identity.URI(trustDomain), pod.ID.UID, time.Hour),
		"Ended":            w.ca.leaf(t, pod.Identity.URI(trustDomain), pod.ID.UID, -time.Second),
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := tls.Dial("tcp", w.address, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{*certificate}, NextProtos: []string{"h2"}})
			must(t, err)
			defer conn.Close()
			// With TLS 1.3 the client learns of it when it reads.
			_ = conn.SetReadDeadline(time.Now().Add(patience))
			for err == nil {
				_, err = conn.Read(make([]byte, 1024))
			}
			wantAlert(t, err)
		})
	}
}

func TestOldTLSIsRefused(t *testing.T) {
	w := newWorld(t, nil)
	_, err := tls.Dial("tcp", w.address, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12, NextProtos: []string{"h2"}})
	wantAlert(t, err)
}

// wantAlert checks that the server ended a handshake.
func wantAlert(t *testing.T, err error) {
	t.Helper()
	if failed, ok := errors.AsType[*net.OpError](err); !ok || failed.Op != "remote error" {
		t.Errorf("want a TLS alert from the server, got %v", err)
	}
}

func TestStreamEndsWithTheCertificate(t *testing.T) {
	w := newWorld(t, nil)
	town := newTown(w.ca)
	pod := town.pod("a-1", "a")
	w.publish(t, town, pod)
	e := w.connect(t, w.ca.leaf(t, pod.Identity.URI(trustDomain), pod.ID.UID, 2*time.Second), pod.ID.String())
	e.subscribe(xds.Cluster)
	e.hear()
	_, proxies := w.current()
	proxies[0].stopRenewal() // which would have had it opened anew before
	if got := status.Code(e.end()); got != codes.Unauthenticated {
		t.Errorf("want the stream to end as unauthenticated, got %s", got)
	}
	eventually(t, "nobody is connected", func() bool { return value(t, w.metrics.connected) == 0 })
}

func TestStreamEndsWithThePod(t *testing.T) {
	w := newWorld(t, nil)
	town := newTown(w.ca)
	pod := town.pod("a-1", "a")
	w.publish(t, town, pod)
	e := w.join(t, pod)
	e.subscribe(xds.Cluster)
	e.hear()
	town.parts.Workloads = nil
	town.pod("a-2", "a")
	w.publish(t, town, pod)
	if got := status.Code(e.end()); got != codes.PermissionDenied {
		t.Errorf("want the stream to end as not permitted, got %s", got)
	}
}

func TestPodThatNoSnapshotHasYet(t *testing.T) {
	w := newWorld(t, nil)
	town := newTown(w.ca)
	w.publish(t, town, mesh.Workload{})
	pod := town.pod("a-1", "a")
	w.pods[pod.ID] = pod.Identity
	e := w.join(t, pod)
	e.subscribe(xds.Cluster)
	eventually(t, "the stream is open", func() bool { return value(t, w.metrics.connected) == 1 })
	set := w.publish(t, town, pod)
	if r := e.hear(); r.GetSystemVersionInfo() != set.Version() {
		t.Errorf("want the first snapshot that has the pod, got %v", what(r))
	}
}

func TestStopEndsStreams(t *testing.T) {
	w := newWorld(t, nil)
	town := newTown(w.ca)
	pod := town.pod("a-1", "a")
	w.publish(t, town, pod)
	e := w.join(t, pod)
	e.subscribe(xds.Cluster)
	e.hear()
	must(t, w.stop())
	if got := status.Code(e.end()); got != codes.Unavailable {
		t.Errorf("want the stream to end as unavailable, got %s", got)
	}
}

func TestSign(t *testing.T) {
	var calls int
	var signedFor string
	var leaf *tls.Certificate
	w := newWorld(t, func(c *Config) {
		c.SignRate, c.SignBurst = 1e-9, 100
		c.Signer = signerFunc(func(token string, csr []byte) (signing.Signed, error) {
			calls++
			switch string(csr) {
			case "refuse":
				return signing.Signed{}, &signing.Refusal{Code: codes.PermissionDenied, Reason: "pod-other", Err: errors.New("not yours")}
			case "fail":
				return signing.Signed{}, errors.New("secret detail")
			}
			signedFor = token
			return signing.Signed{Chain: leaf.Certificate, Roots: [][]byte{[]byte("root")}, By: testAuthority}, nil
		})
	})
	leaf = w.ca.leaf(t, "spiffe://cluster.local/ns/town/sa/a", "uid-a-1", time.Hour)
	client := signing.NewCertificatesClient(w.dial(t, nil))
	cases := map[string]struct {
		reason        string
		csr           string
		authorization []string
		want          codes.Code
		outcome, why  string
		asked         int
	}{
		"Signed": {
			reason: "A token and a request are all it needs, and no client certificate.",
			csr:    "csr", authorization: []string{"Bearer secret"}, outcome: "signed", asked: 1,
		},
		"Refused": {
			reason: "A refusal's code and reason reach the caller and the metric.",
			csr:    "refuse", authorization: []string{"Bearer secret"}, want: codes.PermissionDenied, outcome: "refused", why: "pod-other", asked: 1,
		},
		"Failed": {
			reason: "What went wrong inside is worth another try, and is not told.",
			csr:    "fail", authorization: []string{"Bearer secret"}, want: codes.Unavailable, outcome: "failed", why: "error", asked: 1,
		},
		"NoToken":   {reason: "Nobody is asking.", csr: "csr", want: codes.Unauthenticated, outcome: "refused", why: reasonToken},
		"TwoTokens": {reason: "Which one counts?", csr: "csr", authorization: []string{"Bearer a", "Bearer b"}, want: codes.Unauthenticated, outcome: "refused", why: reasonToken},
		"Basic":     {reason: "It is not a token.", csr: "csr", authorization: []string{"Basic abc"}, want: codes.Unauthenticated, outcome: "refused", why: reasonToken},
		"LongToken": {reason: "No token is that long.", csr: "csr", authorization: []string{"Bearer " + strings.Repeat("a", maxToken+1)}, want: codes.Unauthenticated, outcome: "refused", why: reasonToken},
		"NoRequest": {reason: "There is nothing to sign.", authorization: []string{"Bearer a"}, want: codes.InvalidArgument, outcome: "refused", why: reasonSize},
		"LongRequest": {
			reason: "Large requests are refused before anybody parses them.",
			csr:    strings.Repeat("a", maxRequest+1), authorization: []string{"Bearer a"}, want: codes.InvalidArgument, outcome: "refused", why: reasonSize,
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			calls = 0
			counter := w.metrics.signed.WithLabelValues(tc.outcome, tc.why)
			before := value(t, counter)
			ctx := t.Context()
			for _, a := range tc.authorization {
				ctx = metadata.AppendToOutgoingContext(ctx, "authorization", a)
			}
			response, err := client.Sign(ctx, &signing.SignRequest{Csr: []byte(tc.csr)})
			if got := status.Code(err); got != tc.want {
				t.Errorf("%s\nwant status %s, got %v", tc.reason, tc.want, err)
			}
			if err != nil && strings.Contains(err.Error(), "secret") {
				t.Errorf("%s\nthe error tells too much: %v", tc.reason, err)
			}
			if err != nil {
				return
			}
			if signedFor != "secret" || !bytes.Equal(response.GetChain()[0], leaf.Certificate[0]) || !proto.Equal(response.GetAuthority(), testAuthority) {
				t.Errorf("%s\nunexpected answer for %q: %v", tc.reason, signedFor, response)
			}
			if trusted := response.GetTrusted(); len(trusted) != 1 || trusted[0].GetName() != trustDomain || !bytes.Equal(trusted[0].GetRoots()[0], w.ca.root.Raw) {
				t.Errorf("%s\nthe agent is to trust %v", tc.reason, trusted)
			}
			if calls != tc.asked {
				t.Errorf("%s\nwant the signer asked %d times, got %d", tc.reason, tc.asked, calls)
			}
			if n := value(t, counter) - before; n != 1 {
				t.Errorf("%s\nwant outcome %q, reason %q counted once, got %v", tc.reason, tc.outcome, tc.why, n)
			}
		})
	}
}

func TestSigningIsLimitedByAddress(t *testing.T) {
	var leaf *tls.Certificate
	w := newWorld(t, func(c *Config) {
		c.SignRate, c.SignBurst = 1e-9, 2
		c.Signer = signerFunc(func(string, []byte) (signing.Signed, error) {
			return signing.Signed{Chain: leaf.Certificate, By: testAuthority}, nil
		})
	})
	leaf = w.ca.leaf(t, "spiffe://cluster.local/ns/town/sa/a", "", time.Hour)
	ctx := metadata.AppendToOutgoingContext(context.WithoutCancel(t.Context()), "authorization", "Bearer a")
	var got []codes.Code
	for range 3 {
		// A new connection each time: the limit is the address's.
		_, err := signing.NewCertificatesClient(w.dial(t, nil)).Sign(ctx, &signing.SignRequest{Csr: []byte("csr")})
		got = append(got, status.Code(err))
	}
	if got[0] != codes.OK || got[1] != codes.OK || got[2] != codes.ResourceExhausted {
		t.Errorf("want two answers and then a refusal, got %v", got)
	}
}
