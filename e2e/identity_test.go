//go:build e2e

package e2e

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/outrigger-mesh/outrigger/e2e/harness"
	"github.com/outrigger-mesh/outrigger/internal/mesh"
	"github.com/outrigger-mesh/outrigger/internal/signing"
)

const (
	audience     = "outrigger"
	controlPlane = "outriggerd.outrigger-system.svc.cluster.local:15128"
	clusterType  = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
)

// roots returns the mesh's, as namespaces of the mesh have them.
func roots(t *testing.T) *x509.CertPool {
	t.Helper()
	var trust corev1.ConfigMap
	if err := cluster.Client.Get(t.Context(), client.ObjectKey{Namespace: harness.SystemNamespace, Name: mesh.TrustConfigMap}, &trust); err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(trust.Data["ca.crt"])) {
		t.Fatalf("there is no certificate in %v", trust.Data)
	}
	return pool
}

// dialControlPlane connects to outriggerd through a pod, with a certificate or
// without.
func dialControlPlane(t *testing.T, tunnel corev1.Pod, certificates ...tls.Certificate) *grpc.ClientConn {
	t.Helper()
	pool := roots(t)
	config := &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: certificates, NextProtos: []string{"h2"},
		InsecureSkipVerify: true, //nolint:gosec // verified below, by URI as the agent does
		VerifyConnection: func(state tls.ConnectionState) error {
			leaf, others := state.PeerCertificates[0], x509.NewCertPool()
			for _, c := range state.PeerCertificates[1:] {
				others.AddCert(c)
			}
			if len(leaf.URIs) != 1 || leaf.URIs[0].String() != spiffe(harness.SystemNamespace, "outriggerd") {
				return fmt.Errorf("outriggerd is %v", leaf.URIs)
			}
			_, err := leaf.Verify(x509.VerifyOptions{Roots: pool, Intermediates: others})
			return err
		},
	}
	conn, err := grpc.NewClient("passthrough:///"+controlPlane,
		grpc.WithTransportCredentials(credentials.NewTLS(config)),
		grpc.WithContextDialer(func(_ context.Context, address string) (net.Conn, error) {
			return cluster.Dial(t.Context(), tunnel, address) //nolint:contextcheck // a connection outlives the dialler's context
		}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// tokenOf has the API server make a token of a pod's service account.
func tokenOf(t *testing.T, pod corev1.Pod, forWhom string, bound bool) string {
	t.Helper()
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: new(int64(600))}}
	if forWhom != "" {
		request.Spec.Audiences = []string{forWhom}
	}
	if bound {
		request.Spec.BoundObjectRef = &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: pod.Name, UID: pod.UID}
	}
	answer, err := cluster.Set.CoreV1().ServiceAccounts(pod.Namespace).CreateToken(t.Context(), pod.Spec.ServiceAccountName, request, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return answer.Status.Token
}

// forgedToken is signed by a key that the API server does not know.
func forgedToken(t *testing.T, expires time.Time) string {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	encode := base64.RawURLEncoding.EncodeToString
	text := encode([]byte(`{"alg":"RS256","kid":"forged"}`)) + "." +
		encode(fmt.Appendf(nil, `{"aud":[%q],"exp":%d,"sub":"system:serviceaccount:kube-system:default"}`, audience, expires.Unix()))
	digest := sha256.Sum256([]byte(text))
	signature, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	return text + "." + encode(signature)
}

// newKey returns a key as workloads have one.
func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// requestFor is what a pod's agent asks for.
func requestFor(t *testing.T, pod corev1.Pod) *x509.CertificateRequest {
	t.Helper()
	account := pod.Spec.ServiceAccountName
	uri, err := url.Parse(spiffe(pod.Namespace, account))
	if err != nil {
		t.Fatal(err)
	}
	return &x509.CertificateRequest{
		Subject:  pkix.Name{SerialNumber: string(pod.UID)},
		URIs:     []*url.URL{uri},
		DNSNames: []string{account + "." + pod.Namespace + ".cluster.local"},
	}
}

// sign asks for a certificate, again where that was too often for one address.
func sign(t *testing.T, conn *grpc.ClientConn, token string, request *x509.CertificateRequest, key crypto.Signer) (*signing.SignResponse, error) {
	t.Helper()
	csr, err := x509.CreateCertificateRequest(rand.Reader, request, key)
	if err != nil {
		t.Fatal(err)
	}
	var response *signing.SignResponse
	var refusal error
	eventually(t, func(ctx context.Context) error {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
		response, refusal = signing.NewCertificatesClient(conn).Sign(ctx, &signing.SignRequest{Csr: csr})
		if status.Code(refusal) == codes.ResourceExhausted {
			return refusal
		}
		return nil
	})
	return response, refusal
}

// certificateOf gets a certificate for a pod, as its agent would.
func certificateOf(t *testing.T, tunnel, pod corev1.Pod) tls.Certificate {
	t.Helper()
	key := newKey(t)
	response, err := sign(t, dialControlPlane(t, tunnel), tokenOf(t, pod, audience, true), requestFor(t, pod), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: response.GetChain(), PrivateKey: key}
}

// speakTLS connects with a certificate and returns what the other side says.
func speakTLS(t *testing.T, tunnel corev1.Pod, address, name string, certificate tls.Certificate) string {
	t.Helper()
	conn, err := cluster.Dial(t.Context(), tunnel, address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	peer := tls.Client(conn, &tls.Config{
		ServerName: name, Certificates: []tls.Certificate{certificate},
		InsecureSkipVerify: true, //nolint:gosec // TestACertificateNamesOneIdentity looks at it
	})
	said := make([]byte, 256)
	n, err := peer.Read(said)
	if err != nil && n == 0 {
		t.Logf("%s: %v", address, err)
	}
	return string(said[:n])
}

func TestCertificatesAreSignedForTheirOwnersOnly(t *testing.T) {
	t.Parallel()
	ns, outside := namespace(t, "on", inMesh), namespace(t, "outside", outsideMesh)
	caller("tunnel").create(t, outside)
	optedOut := caller("opted-out")
	optedOut.labels = map[string]string{"outrigger.dev/inject": "disabled"}
	pods := all(t, ns, caller("victim"), caller("thief"), caller("leaving"), optedOut)
	victim, thief, leaving, plain := pods[0], pods[1], pods[2], pods[3]
	tunnel := ready(t, outside, "app=tunnel")
	conn := dialControlPlane(t, tunnel)

	key := newKey(t)
	response, err := sign(t, conn, tokenOf(t, thief, audience, true), requestFor(t, thief), key)
	if err != nil {
		t.Fatalf("a pod's own request: %v", err)
	}
	var chain []*x509.Certificate
	for _, der := range response.GetChain() {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		chain = append(chain, c)
	}
	checkLeaf(t, chain, spiffe(ns, "thief"), string(thief.UID))
	if !key.PublicKey.Equal(chain[0].PublicKey) {
		t.Error("the certificate is for another key")
	}

	gone := tokenOf(t, leaving, audience, true)
	remove(t, &leaving)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	twoNames := requestFor(t, thief)
	twoNames.URIs = append(twoNames.URIs, requestFor(t, victim).URIs...)
	otherUID := requestFor(t, thief)
	otherUID.Subject.SerialNumber = string(victim.UID)
	cases := map[string]struct {
		token   string
		request *x509.CertificateRequest
		key     crypto.Signer
		want    codes.Code
	}{
		"token without our audience":       {token: tokenOf(t, thief, "", true), want: codes.Unauthenticated},
		"token of another mesh":            {token: tokenOf(t, thief, "another-mesh", true), want: codes.Unauthenticated},
		"expired token":                    {token: forgedToken(t, time.Now().Add(-time.Minute)), want: codes.Unauthenticated},
		"forged token":                     {token: forgedToken(t, time.Now().Add(time.Hour)), want: codes.Unauthenticated},
		"token of a deleted pod":           {token: gone, request: requestFor(t, leaving), want: codes.Unauthenticated},
		"token that is bound to no pod":    {token: tokenOf(t, thief, audience, false), want: codes.PermissionDenied},
		"token of a pod without a sidecar": {token: tokenOf(t, plain, audience, true), request: requestFor(t, plain), want: codes.PermissionDenied},
		"token of a pod outside the mesh":  {token: tokenOf(t, tunnel, audience, true), request: requestFor(t, tunnel), want: codes.PermissionDenied},
		"no token at all":                  {token: "", want: codes.Unauthenticated},
		"request for another identity":     {token: tokenOf(t, thief, audience, true), request: requestFor(t, victim), want: codes.PermissionDenied},
		"request for two identities":       {token: tokenOf(t, thief, audience, true), request: twoNames, want: codes.PermissionDenied},
		"request for another pod":          {token: tokenOf(t, thief, audience, true), request: otherUID, want: codes.PermissionDenied},
		"request with an RSA key":          {token: tokenOf(t, thief, audience, true), key: rsaKey, want: codes.InvalidArgument},
	}
	for name, tc := range cases {
		if tc.request == nil {
			tc.request = requestFor(t, thief)
		}
		if tc.key == nil {
			tc.key = newKey(t)
		}
		if _, err := sign(t, conn, tc.token, tc.request, tc.key); status.Code(err) != tc.want {
			t.Errorf("%s: %v, want %s", name, err, tc.want)
		}
	}
}

// TestAProxyGetsItsOwnConfigurationOnly opens xDS streams.
func TestAProxyGetsItsOwnConfigurationOnly(t *testing.T) {
	t.Parallel()
	ns, outside := namespace(t, "on", inMesh), namespace(t, "outside", outsideMesh)
	caller("tunnel").create(t, outside)
	twin := caller("twin")
	twin.account = "one"
	one, leaving := caller("one"), caller("leaving")
	pods := all(t, ns, one, twin, leaving)
	tunnel := ready(t, outside, "app=tunnel")
	certificates := map[string]tls.Certificate{}
	for _, pod := range pods {
		certificates[pod.Name] = certificateOf(t, tunnel, pod)
	}
	node := func(pod corev1.Pod) string { return fmt.Sprintf("%s/%s/%s", pod.Namespace, pod.Name, pod.UID) }

	for name, tc := range map[string]struct {
		certificates []tls.Certificate
		node         string
		want         codes.Code
	}{
		"its own":                   {certificates: []tls.Certificate{certificates["one"]}, node: node(pods[0]), want: codes.OK},
		"no certificate":            {node: node(pods[0]), want: codes.Unauthenticated},
		"a pod of the same account": {certificates: []tls.Certificate{certificates["one"]}, node: node(pods[1]), want: codes.PermissionDenied},
		"a pod of another account":  {certificates: []tls.Certificate{certificates["one"]}, node: node(pods[2]), want: codes.PermissionDenied},
		"a node id that is no pod":  {certificates: []tls.Certificate{certificates["one"]}, node: "sidecar~10.0.0.1~one", want: codes.InvalidArgument},
		"its own uid and a name not its own": {
			certificates: []tls.Certificate{certificates["one"]},
			node:         fmt.Sprintf("%s/%s/%s", ns, "twin", pods[0].UID), want: codes.PermissionDenied,
		},
	} {
		if _, err := openStream(t, dialControlPlane(t, tunnel, tc.certificates...), tc.node); status.Code(err) != tc.want {
			t.Errorf("%s: %v, want %s", name, err, tc.want)
		}
	}

	// The stream of a pod that is deleted ends, and it gets no other.
	stream, err := openStream(t, dialControlPlane(t, tunnel, certificates["leaving"]), node(pods[2]))
	if err != nil {
		t.Fatal(err)
	}
	remove(t, &pods[2])
	ended := make(chan error, 1)
	go func() {
		for {
			if _, err := stream.Recv(); err != nil {
				ended <- err
				return
			}
		}
	}()
	select {
	case err := <-ended:
		if errors.Is(err, io.EOF) {
			t.Log("the stream ended without an error")
		}
	case <-time.After(patience):
		t.Error("the stream of a deleted pod goes on")
	}
	if _, err := openStream(t, dialControlPlane(t, tunnel, certificates["leaving"]), node(pods[2])); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a stream with the certificate of a deleted pod: %v, want %s", err, codes.PermissionDenied)
	}
}

// openStream asks for clusters and waits for the first answer.
func openStream(t *testing.T, conn *grpc.ClientConn, node string) (discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient, error) {
	t.Helper()
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(t.Context())
	if err != nil {
		return nil, err
	}
	// Where the server has refused already, Recv says why.
	if err := stream.Send(&discoveryv3.DeltaDiscoveryRequest{Node: &corev3.Node{Id: node}, TypeUrl: clusterType}); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	_, err = stream.Recv()
	return stream, err
}

// remove deletes a pod and waits until it is gone.
func remove(t *testing.T, pod *corev1.Pod) {
	t.Helper()
	if err := cluster.Client.Delete(t.Context(), pod.DeepCopy(), client.GracePeriodSeconds(1)); err != nil {
		t.Fatal(err)
	}
	eventually(t, func(ctx context.Context) error {
		err := cluster.Client.Get(ctx, client.ObjectKeyFromObject(pod), &corev1.Pod{})
		if err == nil {
			return fmt.Errorf("pod %s is still there", pod.Name)
		}
		return client.IgnoreNotFound(err)
	})
}
