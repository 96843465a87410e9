//go:build integration

package identity

import (
	"bytes"
	"crypto/x509"
	"errors"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/outrigger-mesh/outrigger/e2e/cluster/local"
	"github.com/outrigger-mesh/outrigger/internal/mesh"
	"github.com/outrigger-mesh/outrigger/internal/signing"
)

// requestOf is what the agent of a pod asks for.
func requestOf(t *testing.T, p *corev1.Pod) []byte {
	t.Helper()
	return csr(t, mesh.Identity{Namespace: p.Namespace, ServiceAccount: p.Spec.ServiceAccountName}, string(p.UID), p256(t), nil)
}

// TestTokenOfAnotherCluster has a cluster that calls everything as this one does,
// the issuer of its tokens included, and has only another key.
func TestTokenOfAnotherCluster(t *testing.T) {
	const mesh0 = "abroad"
	signer := newSigner(t, mesh0)
	here := inBothClusters(t, func() *corev1.Pod {
		namespace(t, "coast", map[string]string{meshLabel: "enabled"})
		account(t, "coast", "boat")
		return pod(t, "coast", "boat-1", "boat", nil)
	})
	wantSigned(t, signer, token(t, "coast", "boat", mesh0, here.pod), here.pod)
	_, err := signer.Sign(t.Context(), here.abroad(mesh0), requestOf(t, here.pod))
	wantRefusal(t, "a pod of the same name in another cluster is another pod", err, codes.Unauthenticated, ReasonTokenRejected)
}

type twins struct {
	pod    *corev1.Pod
	abroad func(audience string) string // a token of the pod of the same name in the other cluster
}

// inBothClusters does the same in this cluster and in a second one of its own.
func inBothClusters(t *testing.T, make func() *corev1.Pod) twins {
	t.Helper()
	home := apiServer
	other, err := local.StartAPIServer(t.Context(), t.TempDir())
	must(t, err)
	t.Cleanup(other.Stop)
	// The helpers of these tests, which do not run in parallel, ask whichever it is.
	apiServer = other
	defer func() { apiServer = home }()
	there := make()
	tokens := map[string]string{}
	tokens["abroad"] = token(t, there.Namespace, there.Spec.ServiceAccountName, "abroad", there)
	apiServer = home
	return twins{pod: make(), abroad: func(audience string) string { return tokens[audience] }}
}

// TestCapturedRequest has a request of a pod and its token in the hands of another.
func TestCapturedRequest(t *testing.T) {
	const mesh0 = "captured"
	signer := newSigner(t, mesh0)
	namespace(t, "bay", map[string]string{meshLabel: "enabled"})
	account(t, "bay", "ship")
	victim, thief := pod(t, "bay", "ship-1", "ship", nil), pod(t, "bay", "ship-2", "ship", nil)
	captured, stolen := requestOf(t, victim), token(t, "bay", "ship", mesh0, victim)

	key := func(der []byte) []byte {
		request, err := x509.ParseCertificateRequest(der)
		must(t, err)
		return request.RawSubjectPublicKeyInfo
	}
	swapped := bytes.Replace(captured, key(captured), key(requestOf(t, thief)), 1)
	_, err := signer.Sign(t.Context(), stolen, swapped)
	wantRefusal(t, "a request is for the key that signed it", err, codes.InvalidArgument, ReasonRequest)

	_, err = signer.Sign(t.Context(), token(t, "bay", "ship", mesh0, thief), captured)
	wantRefusal(t, "a captured request is of no use with a token of another pod", err, codes.PermissionDenied, ReasonNames)

	// What it is: whoever has the token has the pod's identity, as long as the pod
	// lives and no longer.
	wantSigned(t, signer, stolen, victim)
	must(t, admin(t).Delete(t.Context(), victim, client.GracePeriodSeconds(0)))
	again := pod(t, "bay", "ship-1", "ship", nil)
	for name, request := range map[string][]byte{"itself": requestOf(t, victim), "its successor": requestOf(t, again)} {
		_, err = signer.Sign(t.Context(), stolen, request)
		// The API server remembers for a while that the token was good; the pod is
		// asked for all the same.
		refusal, ok := errors.AsType[*signing.Refusal](err)
		if !ok || refusal.Reason != ReasonTokenRejected && refusal.Reason != ReasonPodUnknown {
			t.Errorf("a token of a pod that is gone, for %s: %v", name, err)
		}
	}
}

func TestSigningIsLimitedByPod(t *testing.T) {
	const mesh0 = "often"
	signer := newSigner(t, mesh0)
	signer.PodRate, signer.PodBurst = 1e-9, 2
	namespace(t, "pier", map[string]string{meshLabel: "enabled"})
	account(t, "pier", "ship")
	loud, quiet := pod(t, "pier", "ship-1", "ship", nil), pod(t, "pier", "ship-2", "ship", nil)
	for range 2 {
		wantSigned(t, signer, token(t, "pier", "ship", mesh0, loud), loud)
	}
	_, err := signer.Sign(t.Context(), token(t, "pier", "ship", mesh0, loud), requestOf(t, loud))
	wantRefusal(t, "no pod needs so many", err, codes.ResourceExhausted, ReasonPodRate)
	wantSigned(t, signer, token(t, "pier", "ship", mesh0, quiet), quiet)
}

// TestStolenNode has what a kubelet may do in the hands of somebody else. The
// mesh's part is to add nothing to it: a node can be the pods that run on it.
func TestStolenNode(t *testing.T) {
	const mesh0 = "stolen"
	signer := newSigner(t, mesh0)
	namespace(t, "dock", map[string]string{meshLabel: "enabled"})
	account(t, "dock", "ship")
	on := func(node string) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			p.Spec.NodeName = node
			// As injected pods have it; a node gets no token for an audience that none has.
			p.Spec.Volumes = []corev1.Volume{{Name: "outrigger-token", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
				Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Audience: mesh0, Path: "token"}}},
			}}}}
		}
	}
	mine, others := pod(t, "dock", "ship-1", "ship", on("stolen-1")), pod(t, "dock", "ship-2", "ship", on("safe-1"))

	config := rest.CopyConfig(apiServer.Config)
	config.Impersonate = rest.ImpersonationConfig{UserName: "system:node:stolen-1", Groups: []string{"system:nodes", "system:authenticated"}}
	node, err := kubernetes.NewForConfig(config)
	must(t, err)
	ask := func(p *corev1.Pod) (string, error) {
		answer, err := node.CoreV1().ServiceAccounts("dock").CreateToken(t.Context(), "ship", &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
			Audiences: []string{mesh0}, ExpirationSeconds: new(int64(time.Hour / time.Second)),
			BoundObjectRef: &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: p.Name, UID: p.UID},
		}}, metav1.CreateOptions{})
		if err != nil {
			return "", err
		}
		return answer.Status.Token, nil
	}
	// The API server learns of pods and their nodes from a cache.
	var own string
	eventually(t, "the node gets a token of its own pod", func() error {
		own, err = ask(mine)
		return err
	})
	wantSigned(t, signer, own, mine)
	_, err = signer.Sign(t.Context(), own, requestOf(t, others))
	wantRefusal(t, "a token of its pod is of no use for another", err, codes.PermissionDenied, ReasonNames)
	if _, err := ask(others); !apierrors.IsForbidden(err) {
		t.Errorf("a token of a pod on another node: %v; want it forbidden", err)
	}
	for _, secret := range []string{"outrigger-ca", "outrigger-webhook-ca"} {
		if _, err := node.CoreV1().Secrets(mesh0).Get(t.Context(), secret, metav1.GetOptions{}); !apierrors.IsForbidden(err) {
			t.Errorf("Secret %s: %v; want it forbidden", secret, err)
		}
	}
}
