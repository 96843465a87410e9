//go:build integration

package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/outrigger-mesh/outrigger/internal/annotation"
	"github.com/outrigger-mesh/outrigger/internal/controller"
	"github.com/outrigger-mesh/outrigger/internal/identity"
	"github.com/outrigger-mesh/outrigger/internal/rotation"
)

// TestRotationWithAWorkloadAPI rotates a mesh to another trust domain and root, while a
// pod has its certificates from a Workload API: the documented way of a user of SPIRE,
// with real outriggerd, agent and Envoy.
func TestRotationWithAWorkloadAPI(t *testing.T) {
	inNetwork(t, "TestRotation", build(t, "", "../outrigger-agent"))
}

// TestRotation is the part of TestRotationWithAWorkloadAPI that runs in a network
// namespace. By itself it has nothing to test.
func TestRotation(t *testing.T) {
	dir := network(t)
	if dir == "" {
		return
	}
	m := newMesh(t)
	old, next := newAuthority(t), newAuthority(t) // of the Workload API
	m.keep("mesh-ca", newAuthority(t), old)
	m.keep("mesh-ca-2", newAuthority(t), next)
	own := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "outrigger-system", Name: "outriggerd-1", Labels: map[string]string{"app.kubernetes.io/component": "outriggerd"}},
		Spec:       corev1.PodSpec{NodeName: "nowhere", Containers: []corev1.Container{{Name: "outriggerd", Image: "outriggerd"}}},
	}
	m.create(own)
	own.Status.Phase = corev1.PodRunning
	must(t, m.admin.Status().Update(t.Context(), own))
	m.outriggerd("", []string{"POD_UID=" + string(own.UID)},
		"-authority", `{"builtIn": {"secret": "mesh-ca"}}`, "-webhook-address", serviceIP+":443", "-xds-address", podIP+":15128")
	m.eventually("outriggerd is ready", func() error { return answers("http://127.0.0.1:9091/readyz") })

	pod := m.injected(func(p *corev1.Pod) {
		p.Annotations = map[string]string{annotation.Identity: "workload-api:spiffe/agent.sock"}
		p.Spec.Volumes = []corev1.Volume{{Name: "spiffe"}}
	})
	m.agent(dir, "", pod, func(state string) {
		serveSVIDs(t, filepath.Join(state, "identity", "agent.sock"),
			next.issue(t, "spiffe://mesh.new/ns/shop/sa/default"), old.issue(t, "spiffe://cluster.local/ns/shop/sa/default"))
	})
	m.proxy(func(c connected) bool {
		return c.TrustDomain == "cluster.local" && slices.Equal(c.Roots, []string{identity.Print(old.certificate)})
	})

	m.eventually("the rotation is wanted", func() error {
		a, err := controller.ReadAuthorities(t.Context(), m.admin, "outrigger-system")
		if err != nil {
			return err
		}
		goal := rotation.Authority{TrustDomain: "mesh.new", BuiltIn: &rotation.BuiltIn{Secret: "mesh-ca-2"}}.WithDefaults()
		a.Wanted.Goal, a.Wanted.By = rotation.Goal{Sign: goal}, "a test"
		return controller.Want(t.Context(), m.admin, a, a.Wanted)
	})
	began := time.Now()
	steps := []rotation.Step{rotation.StepTrust, rotation.StepSign, rotation.StepServe, rotation.StepNarrow, rotation.StepForget, rotation.StepDone}
	for n, step := range steps {
		m.eventually("the rotation is in step "+string(step)+", or beyond", func() error {
			a, err := controller.ReadAuthorities(t.Context(), m.admin, "outrigger-system")
			if err != nil {
				return err
			}
			if last := a.State.Last; last != nil && a.State.Rotation == nil || a.State.Rotation != nil && slices.Contains(steps[n:], a.State.Rotation.Step) {
				return nil
			}
			return fmt.Errorf("the state is %s", a.State.JSON())
		})
		t.Logf("%s after %s", step, time.Since(began).Round(time.Second))
	}
	m.proxy(func(c connected) bool {
		return c.TrustDomain == "mesh.new" && slices.Equal(c.Roots, []string{identity.Print(next.certificate)})
	})
}

// keep puts a CA into a Secret, with the root of somebody else whose certificates are
// good too.
func (m *meshOnAPIServer) keep(name string, own, also authority) {
	m.t.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(own.key)
	must(m.t, err)
	m.create(&corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: "outrigger-system", Name: name}, Type: corev1.SecretTypeTLS,
		Data: map[string][]byte{
			corev1.TLSCertKey: own.pem(), corev1.TLSPrivateKeyKey: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}),
			identity.TrustKey: append(own.pem(), also.pem()...),
		},
	})
}

// An authority is a root.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(365 * 24 * time.Hour),
	}
	template.Subject.CommonName = "root"
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	must(t, err)
	certificate, err := x509.ParseCertificate(der)
	must(t, err)
	return authority{certificate, key}
}

func (a authority) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.certificate.Raw})
}

// issue returns what a Workload API says of a certificate for a name.
func (a authority) issue(t *testing.T, name string) *workload.X509SVID {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	uri, err := url.Parse(name)
	must(t, err)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), URIs: []*url.URL{uri}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		NotBefore:   time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
	}, a.certificate, key.Public(), a.key)
	must(t, err)
	text, err := x509.MarshalPKCS8PrivateKey(key)
	must(t, err)
	return &workload.X509SVID{SpiffeId: name, X509Svid: der, X509SvidKey: text}
}

// svids are the answer of a Workload API.
type svids struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	answer *workload.X509SVIDResponse
}

// FetchX509SVID answers once.
func (s svids) FetchX509SVID(_ *workload.X509SVIDRequest, stream grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
	if err := stream.Send(s.answer); err != nil {
		return err
	}
	<-stream.Context().Done()
	return nil
}

func serveSVIDs(t *testing.T, socket string, certificates ...*workload.X509SVID) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(socket), 0o755))
	listener, err := net.Listen("unix", socket)
	must(t, err)
	server := grpc.NewServer()
	workload.RegisterSpiffeWorkloadAPIServer(server, svids{answer: &workload.X509SVIDResponse{Svids: certificates}})
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
}
