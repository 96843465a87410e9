//go:build integration

package identity

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
	"github.com/outrigger-mesh/outrigger/internal/sidecar"
	"github.com/outrigger-mesh/outrigger/internal/signing"
)

const meshLabel = "outrigger.dev/inject"

// account makes a service account.
func account(t *testing.T, namespace, name string) {
	t.Helper()
	must(t, admin(t).Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}))
}

// pod makes a pod with a sidecar, which nobody runs here.
func pod(t *testing.T, namespace, name, serviceAccount string, change func(*corev1.Pod)) *corev1.Pod {
	t.Helper()
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec: corev1.PodSpec{
			ServiceAccountName: serviceAccount,
			NodeName:           "nowhere",
			InitContainers:     []corev1.Container{{Name: sidecar.Name, Image: "x", RestartPolicy: new(corev1.ContainerRestartPolicyAlways)}},
			Containers:         []corev1.Container{{Name: "app", Image: "x"}},
		},
	}
	if change != nil {
		change(p)
	}
	must(t, admin(t).Create(t.Context(), p))
	return p
}

// token asks the API server for a token, as the kubelet does.
func token(t *testing.T, namespace, serviceAccount, audience string, bound *corev1.Pod) string {
	t.Helper()
	set, err := kubernetes.NewForConfig(apiServer.Config)
	must(t, err)
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: new(int64(3600))}}
	if audience != "" {
		request.Spec.Audiences = []string{audience}
	}
	if bound != nil {
		request.Spec.BoundObjectRef = &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: bound.Name, UID: bound.UID}
	}
	answer, err := set.CoreV1().ServiceAccounts(namespace).CreateToken(t.Context(), serviceAccount, request, metav1.CreateOptions{})
	must(t, err)
	return answer.Status.Token
}

// newSigner is the signer of a mesh, with the rights that the chart gives it.
func newSigner(t *testing.T, name string) *Signer {
	t.Helper()
	home, set := newHome(t, name)
	ca, err := OpenCA(t.Context(), home, CAConfig{TrustDomain: trustDomain})
	must(t, err)
	return signerOf(home, set, ca)
}

// signerOf is the signer of a mesh with that issuer.
func signerOf(home Home, set *kubernetes.Clientset, issuer Issuer) *Signer {
	return &Signer{
		Verifier: NewVerifier(VerifierConfig{
			Audience: home.Mesh, SystemNamespace: home.Namespace, Reviews: set.AuthenticationV1().TokenReviews(), Live: home.Client,
			InMesh: func(ctx context.Context, namespace string) (bool, error) {
				var ns corev1.Namespace
				err := home.Client.Get(ctx, client.ObjectKey{Name: namespace}, &ns)
				_, ok := ns.Labels[meshLabel]
				return ok, client.IgnoreNotFound(err)
			},
		}),
		Authorities: authoritiesOf(issuer),
	}
}

func TestWhoGetsACertificate(t *testing.T) {
	const mesh0 = "signing"
	signer := newSigner(t, mesh0)
	account(t, mesh0, "outriggerd")
	for _, ns := range []string{"shop", "closed"} {
		labels := map[string]string{meshLabel: "enabled"}
		if ns == "closed" {
			labels = nil
		}
		namespace(t, ns, labels)
		account(t, ns, "cart")
		account(t, ns, "admin")
	}
	good := pod(t, "shop", "cart-1", "cart", nil)
	request := func(p *corev1.Pod) []byte {
		return csr(t, mesh.Identity{Namespace: p.Namespace, ServiceAccount: p.Spec.ServiceAccountName}, string(p.UID), p256(t), nil)
	}
	goodToken := func() string { return token(t, "shop", "cart", mesh0, good) }

	cases := map[string]struct {
		reason string
		token  func(*testing.T) string
		csr    func(*testing.T) []byte // of the good pod if nil
		code   codes.Code
		why    string
	}{
		"OtherAudience": {
			reason: "A token for the API server, stolen from a pod, is worth nothing here.",
			token:  func(t *testing.T) string { return token(t, "shop", "cart", "", good) },
			code:   codes.Unauthenticated, why: ReasonTokenAudience,
		},
		"OtherMesh": {
			reason: "Two meshes in a cluster do not mix.",
			token:  func(t *testing.T) string { return token(t, "shop", "cart", "outrigger-2", good) },
			code:   codes.Unauthenticated, why: ReasonTokenAudience,
		},
		"Forged": {
			reason: "Right claims with a wrong signature pass the cheap checks and no other.",
			token: func(t *testing.T) string {
				real := goodToken()
				return real[:strings.LastIndex(real, ".")+1] + strings.Repeat("A", 342)
			},
			code: codes.Unauthenticated, why: ReasonTokenRejected,
		},
		"NotBound": {
			reason: "A token of the service account alone could be used by anybody who may ask for one.",
			token:  func(t *testing.T) string { return token(t, "shop", "cart", mesh0, nil) },
			code:   codes.PermissionDenied, why: ReasonNotPodBound,
		},
		"OtherIdentity": {
			reason: "A pod gets no other identity than its own.",
			token:  func(*testing.T) string { return goodToken() },
			csr: func(t *testing.T) []byte {
				return csr(t, mesh.Identity{Namespace: "shop", ServiceAccount: "admin"}, string(good.UID), p256(t), nil)
			},
			code: codes.PermissionDenied, why: ReasonNames,
		},
		"OtherReplica": {
			reason: "Nor that of a pod with the same service account.",
			token:  func(*testing.T) string { return goodToken() },
			csr:    func(t *testing.T) []byte { return request(pod(t, "shop", "cart-2", "cart", nil)) },
			code:   codes.PermissionDenied, why: ReasonNames,
		},
		"NotInjected": {
			reason: "A pod without a sidecar is not in the mesh.",
			token: func(t *testing.T) string {
				return token(t, "shop", "cart", mesh0, pod(t, "shop", "plain", "cart", func(p *corev1.Pod) { p.Spec.InitContainers = nil }))
			},
			code: codes.PermissionDenied, why: ReasonPodNotInjected,
		},
		"OrdinaryInitContainer": {
			reason: "A container of that name that is not a sidecar is not ours.",
			token: func(t *testing.T) string {
				return token(t, "shop", "cart", mesh0, pod(t, "shop", "ordinary", "cart", func(p *corev1.Pod) { p.Spec.InitContainers[0].RestartPolicy = nil }))
			},
			code: codes.PermissionDenied, why: ReasonPodNotInjected,
		},
		"NamespaceOutside": {
			reason: "A namespace joins by its label.",
			token: func(t *testing.T) string {
				return token(t, "closed", "cart", mesh0, pod(t, "closed", "cart-1", "cart", nil))
			},
			code: codes.PermissionDenied, why: ReasonNotInMesh,
		},
		"SystemNamespace": {
			reason: "With outriggerd's identity one could be the control plane.",
			token: func(t *testing.T) string {
				return token(t, mesh0, "outriggerd", mesh0, pod(t, mesh0, "fake", "outriggerd", nil))
			},
			code: codes.PermissionDenied, why: ReasonSystemNamespace,
		},
		"Deleted": {
			reason: "A token ends with its pod.",
			token: func(t *testing.T) string {
				p := pod(t, "shop", "deleted", "cart", nil)
				text := token(t, "shop", "cart", mesh0, p)
				must(t, admin(t).Delete(t.Context(), p, client.GracePeriodSeconds(0)))
				return text
			},
			code: codes.Unauthenticated, why: ReasonTokenRejected,
		},
		"Completed": {
			reason: "A Job's pod that has ended needs no certificate.",
			token: func(t *testing.T) string {
				p := pod(t, "shop", "completed", "cart", nil)
				p.Status.Phase = corev1.PodSucceeded
				must(t, admin(t).Status().Update(t.Context(), p))
				return token(t, "shop", "cart", mesh0, p)
			},
			code: codes.PermissionDenied, why: ReasonPodEnded,
		},
		"Garbage": {
			reason: "Anything may come.",
			token:  func(*testing.T) string { return "garbage" },
			code:   codes.Unauthenticated, why: ReasonTokenMalformed,
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			make := tc.csr
			if make == nil {
				make = func(*testing.T) []byte { return request(good) }
			}
			text := tc.token(t)
			// The API server's own cache may be a moment behind what was just deleted.
			var err error
			eventually(t, tc.reason, func() error {
				_, err = signer.Sign(t.Context(), text, make(t))
				refusal, ok := errors.AsType[*signing.Refusal](err)
				if !ok {
					return fmt.Errorf("got %w", err)
				}
				if refusal.Reason == ReasonPodUnknown && tc.why == ReasonTokenRejected {
					return err // we know already, the API server will
				}
				return nil
			})
			wantRefusal(t, tc.reason, err, tc.code, tc.why)
			if strings.Contains(err.Error(), text) && name != "Garbage" {
				t.Errorf("%s\nthe error holds the token", tc.reason)
			}
		})
	}

	t.Run("Good", func(t *testing.T) { wantSigned(t, signer, goodToken(), good) })
	t.Run("Terminating", func(t *testing.T) {
		// A long drain needs a valid certificate. No kubelet ends the pod here.
		p := pod(t, "shop", "draining", "cart", func(p *corev1.Pod) { p.Spec.TerminationGracePeriodSeconds = new(int64(600)) })
		text := token(t, "shop", "cart", mesh0, p)
		must(t, admin(t).Delete(t.Context(), p))
		must(t, admin(t).Get(t.Context(), client.ObjectKeyFromObject(p), p))
		if p.DeletionTimestamp == nil {
			t.Fatal("the pod is not being deleted")
		}
		wantSigned(t, signer, text, p)
		if !ended(p, p.DeletionTimestamp.Add(time.Second)) {
			t.Error("after its grace period the pod may still renew")
		}
	})
}

// wantSigned has a certificate signed, and verifies it as a peer would.
func wantSigned(t *testing.T, signer *Signer, text string, p *corev1.Pod) {
	t.Helper()
	id := mesh.Identity{Namespace: p.Namespace, ServiceAccount: p.Spec.ServiceAccountName}
	signed, err := signer.Sign(t.Context(), text, csr(t, id, string(p.UID), p256(t), nil))
	chain, roots := signed.Chain, signed.Roots
	must(t, err)
	var certificates [2][]*x509.Certificate
	for i, list := range [][][]byte{chain, roots} {
		for _, der := range list {
			c, err := x509.ParseCertificate(der)
			must(t, err)
			certificates[i] = append(certificates[i], c)
		}
	}
	leaf := certificates[0][0]
	_, err = leaf.Verify(x509.VerifyOptions{
		Roots: pool(certificates[1]), Intermediates: pool(certificates[0][1:]), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	must(t, err)
	if leaf.URIs[0].String() != id.URI(trustDomain) || leaf.Subject.SerialNumber != string(p.UID) {
		t.Errorf("signed for %s %s", leaf.URIs[0], leaf.Subject)
	}
	if life := leaf.NotAfter.Sub(leaf.NotBefore); life < 24*time.Hour || life > 25*time.Hour {
		t.Errorf("valid for %s", life)
	}
}

func TestWhoMayOpenAStreamBeforeAnySnapshot(t *testing.T) {
	signer := newSigner(t, "streams")
	namespace(t, "port", map[string]string{meshLabel: "enabled"})
	account(t, "port", "ship")
	p := pod(t, "port", "ship-1", "ship", nil)
	plain := pod(t, "port", "plain", "ship", func(p *corev1.Pod) { p.Spec.InitContainers = nil })
	for name, tc := range map[string]struct {
		id   mesh.ProxyID
		want bool
	}{
		"Known":    {mesh.ProxyID{Namespace: "port", Pod: "ship-1", UID: string(p.UID)}, true},
		"OtherUID": {mesh.ProxyID{Namespace: "port", Pod: "ship-1", UID: "other"}, false},
		"Nowhere":  {mesh.ProxyID{Namespace: "port", Pod: "ship-2", UID: string(p.UID)}, false},
		"Plain":    {mesh.ProxyID{Namespace: "port", Pod: "plain", UID: string(plain.UID)}, false},
	} {
		t.Run(name, func(t *testing.T) {
			id, ok, err := signer.Verifier.Identity(t.Context(), tc.id)
			must(t, err)
			if ok != tc.want || ok && id != (mesh.Identity{Namespace: "port", ServiceAccount: "ship"}) {
				t.Errorf("got %v %v", id, ok)
			}
		})
	}
}

// TestWhereAPodIs is about certificates that name no pod.
func TestWhereAPodIs(t *testing.T) {
	signer := newSigner(t, "located")
	namespace(t, "quay", map[string]string{meshLabel: "enabled"})
	account(t, "quay", "ship")
	at := func(name, annotation string, change func(*corev1.Pod)) mesh.ProxyID {
		p := pod(t, "quay", name, "ship", func(p *corev1.Pod) {
			p.Annotations = map[string]string{"outrigger.dev/identity": annotation}
			if change != nil {
				change(p)
			}
		})
		p.Status.PodIP, p.Status.PodIPs = "10.1.2.3", []corev1.PodIP{{IP: "10.1.2.3"}, {IP: "fd00::3"}}
		must(t, admin(t).Status().Update(t.Context(), p))
		return mesh.ProxyID{Namespace: "quay", Pod: name, UID: string(p.UID)}
	}
	borrower := at("borrower", "workload-api:spiffe/api.sock", nil)
	other := borrower
	other.UID = "other"
	for name, tc := range map[string]struct {
		id   mesh.ProxyID
		at   string
		want bool
	}{
		"Its":           {borrower, "10.1.2.3", true},
		"ItsSecond":     {borrower, "fd00::3", true},
		"Another":       {borrower, "10.1.2.4", false},
		"OtherUID":      {other, "10.1.2.3", false},
		"OfTheMesh":     {at("ordinary", "mesh", nil), "10.1.2.3", false},
		"OnTheHost":     {at("host", "files:svid", func(p *corev1.Pod) { p.Spec.HostNetwork = true }), "10.1.2.3", false},
		"FaultyKeyword": {at("faulty", "spire", nil), "10.1.2.3", false},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := signer.Verifier.Located(t.Context(), tc.id, netip.MustParseAddr(tc.at))
			must(t, err)
			if got != tc.want {
				t.Errorf("%s at %s: got %t", tc.id, tc.at, got)
			}
		})
	}

	// Where the issuer may leave the pod out, every pod is told apart by its address.
	signer.Verifier.cfg.MayNameNoPod = func() bool { return true }
	ordinary := at("any", "mesh", nil)
	host := at("any-on-the-host", "mesh", func(p *corev1.Pod) { p.Spec.HostNetwork = true })
	for _, tc := range []struct {
		id   mesh.ProxyID
		at   string
		want bool
	}{{ordinary, "10.1.2.3", true}, {ordinary, "10.1.2.4", false}, {host, "10.1.2.3", false}} {
		got, err := signer.Verifier.Located(t.Context(), tc.id, netip.MustParseAddr(tc.at))
		must(t, err)
		if got != tc.want {
			t.Errorf("the issuer leaves the pod out: %s at %s: got %t", tc.id, tc.at, got)
		}
	}
}
