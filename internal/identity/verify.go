package identity

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/outrigger-mesh/outrigger/internal/annotation"
	"github.com/outrigger-mesh/outrigger/internal/mesh"
	"github.com/outrigger-mesh/outrigger/internal/sidecar"
	"github.com/outrigger-mesh/outrigger/internal/signing"
)

// Reasons for which no certificate is signed. They appear in metrics and logs.
const (
	ReasonTokenMalformed  = "token-malformed"
	ReasonTokenAudience   = "token-audience"
	ReasonTokenExpired    = "token-expired"
	ReasonTokenRejected   = "token-rejected"
	ReasonReview          = "review-failed"
	ReasonReviewsBusy     = "reviews-busy"
	ReasonNotPodBound     = "not-pod-bound"
	ReasonSystemNamespace = "system-namespace"
	ReasonNotInMesh       = "namespace-not-in-mesh"
	ReasonPodLookup       = "pod-lookup-failed"
	ReasonPodUnknown      = "pod-unknown"
	ReasonPodOther        = "pod-other"
	ReasonPodNotInjected  = "pod-not-injected"
	ReasonPodEnded        = "pod-ended"
	ReasonRequest         = "request-malformed"
	ReasonKey             = "request-key"
	ReasonNames           = "request-names"
	ReasonIssuer          = "issuer-failed"
	ReasonPodRate         = "pod-rate-limited"
	ReasonBusy            = "issuer-busy"
	ReasonDenied          = "issuer-denied"
)

// What the API server's review says about a token that is bound to a pod.
const (
	extraPodName         = "authentication.kubernetes.io/pod-name"
	extraPodUID          = "authentication.kubernetes.io/pod-uid"
	serviceAccountPrefix = "system:serviceaccount:"
)

// A TokenReviewer asks the API server whose token it is. The client of client-go
// for TokenReviews is one.
type TokenReviewer interface {
	Create(ctx context.Context, review *authenticationv1.TokenReview, opts metav1.CreateOptions) (*authenticationv1.TokenReview, error)
}

// A VerifierConfig says whom a Verifier asks. All fields but Cached are required.
type VerifierConfig struct {
	// Audience of the tokens: the mesh's name, so that two meshes do not mix.
	Audience string
	// SystemNamespace is the mesh's own. Its identities are never given away.
	SystemNamespace string
	Reviews         TokenReviewer
	// Cached is asked for pods first; Live, which must not be a cache, if that has
	// not got them yet.
	Cached, Live client.Reader
	// InMesh reports whether a namespace is part of the mesh.
	InMesh func(ctx context.Context, namespace string) (bool, error)
	// MayNameNoPod reports whether certificates that outriggerd has signed may leave
	// the pod out; nil for never.
	MayNameNoPod func() bool
}

// A Verifier finds out which pod is calling. It is safe for concurrent use.
type Verifier struct {
	cfg VerifierConfig
	// reviews holds one value for each review that the API server is busy with, and
	// patience is how long a caller waits for its turn.
	reviews  chan struct{}
	patience time.Duration
}

const (
	// maxReviews bounds what tokens that only look right can do to the API server.
	// More callers wait, which takes no more of it.
	maxReviews     = 32
	reviewPatience = 5 * time.Second
	reviewRetry    = 2 * time.Second
)

// NewVerifier returns a Verifier.
func NewVerifier(cfg VerifierConfig) *Verifier {
	return &Verifier{cfg: cfg, reviews: make(chan struct{}, maxReviews), patience: reviewPatience}
}

// A Caller is a pod that has proved what it is.
type Caller struct {
	Identity mesh.Identity
	Pod      mesh.ProxyID
}

func refuse(code codes.Code, reason, format string, args ...any) *signing.Refusal {
	return &signing.Refusal{Code: code, Reason: reason, Err: fmt.Errorf(format, args...)}
}

// Verify returns the pod that a service account token belongs to, if that pod may
// have an identity in the mesh. The error is a *signing.Refusal. Cheap checks
// come first, so that a flood of nonsense does not reach the API server.
func (v *Verifier) Verify(ctx context.Context, token string) (Caller, error) {
	if err := checkToken(token, v.cfg.Audience, time.Now()); err != nil {
		return Caller{}, err
	}
	caller, err := v.review(ctx, token)
	if err != nil {
		return Caller{}, err
	}
	if err := v.checkNamespace(ctx, caller.Identity.Namespace); err != nil {
		return Caller{}, err
	}
	pod, err := v.pod(ctx, caller.Pod)
	if err != nil {
		return Caller{}, refuse(codes.Unavailable, ReasonPodLookup, "look up pod %s: %w", caller.Pod, err)
	}
	return caller, checkPod(pod, caller)
}

// Identity returns the service account of a pod that may open an xDS stream, and
// whether there is such a pod now.
func (v *Verifier) Identity(ctx context.Context, id mesh.ProxyID) (mesh.Identity, bool, error) {
	pod, err := v.pod(ctx, id)
	if err != nil || pod == nil {
		return mesh.Identity{}, false, err
	}
	caller := Caller{Identity: identityOf(pod), Pod: id}
	err = v.checkNamespace(ctx, id.Namespace)
	if err == nil {
		err = checkPod(pod, caller)
	}
	if refusal, ok := errors.AsType[*signing.Refusal](err); ok && refusal.Code == codes.Unavailable {
		return mesh.Identity{}, false, refusal.Err
	}
	return caller.Identity, err == nil, nil
}

// Located reports whether a pod may have a certificate that names a service account
// and no pod, and has that address now, which then has to tell its pods apart. It
// may where it says that it has its certificate from somebody else than outriggerd,
// or where the issuer may leave the pod out.
func (v *Verifier) Located(ctx context.Context, id mesh.ProxyID, at netip.Addr) (bool, error) {
	found, anyPod := false, v.cfg.MayNameNoPod != nil && v.cfg.MayNameNoPod()
	_, err := v.find(ctx, id, func(pod *corev1.Pod) bool {
		source, err := annotation.ParseIdentity(pod.Annotations)
		found = (anyPod || err == nil && source.Volume != "") && hasAddress(pod, at)
		return found
	})
	return found, err
}

func hasAddress(pod *corev1.Pod, at netip.Addr) bool {
	return !pod.Spec.HostNetwork && slices.ContainsFunc(pod.Status.PodIPs, func(ip corev1.PodIP) bool {
		address, err := netip.ParseAddr(ip.IP)
		return err == nil && address.Unmap() == at
	})
}

// review has the API server verify a token, and takes the identity from its
// answer alone.
func (v *Verifier) review(ctx context.Context, token string) (Caller, error) {
	if err := v.turn(ctx); err != nil {
		return Caller{}, err
	}
	defer func() { <-v.reviews }()
	answer, err := v.cfg.Reviews.Create(ctx, &authenticationv1.TokenReview{
		Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: []string{v.cfg.Audience}},
	}, metav1.CreateOptions{})
	if err != nil {
		return Caller{}, refuse(codes.Unavailable, ReasonReview, "have the token reviewed: %w", err)
	}
	status := answer.Status
	// An API server that does not know of audiences answers without any.
	if !status.Authenticated || !slices.Contains(status.Audiences, v.cfg.Audience) {
		return Caller{}, refuse(codes.Unauthenticated, ReasonTokenRejected, "the API server does not accept the token")
	}
	account, ok := strings.CutPrefix(status.User.Username, serviceAccountPrefix)
	namespace, name, split := strings.Cut(account, ":")
	if !ok || !split {
		return Caller{}, refuse(codes.PermissionDenied, ReasonNotPodBound, "the token is of %q, which is not a service account", status.User.Username)
	}
	pod, uid := status.User.Extra[extraPodName], status.User.Extra[extraPodUID]
	if len(pod) != 1 || len(uid) != 1 || pod[0] == "" || uid[0] == "" {
		return Caller{}, refuse(codes.PermissionDenied, ReasonNotPodBound, "the token of %s/%s is not bound to a pod", namespace, name)
	}
	return Caller{
		Identity: mesh.Identity{Namespace: namespace, ServiceAccount: name},
		Pod:      mesh.ProxyID{Namespace: namespace, Pod: pod[0], UID: uid[0]},
	}, nil
}

// turn waits until one more review may be asked for. Whoever got it gives it back.
func (v *Verifier) turn(ctx context.Context) error {
	patience := time.NewTimer(v.patience)
	defer patience.Stop()
	select {
	case v.reviews <- struct{}{}:
		return nil
	case <-ctx.Done():
	case <-patience.C:
	}
	return &signing.Refusal{
		Code: codes.ResourceExhausted, Reason: ReasonReviewsBusy, RetryAfter: reviewRetry,
		Err: fmt.Errorf("%d tokens are being reviewed", maxReviews),
	}
}

// checkNamespace checks that identities of a namespace may be given away.
func (v *Verifier) checkNamespace(ctx context.Context, namespace string) error {
	if namespace == v.cfg.SystemNamespace {
		return refuse(codes.PermissionDenied, ReasonSystemNamespace, "namespace %s is the mesh's own; its identities are not given away", namespace)
	}
	member, err := v.cfg.InMesh(ctx, namespace)
	if err != nil {
		return refuse(codes.Unavailable, ReasonPodLookup, "look up namespace %s: %w", namespace, err)
	}
	if !member {
		return refuse(codes.PermissionDenied, ReasonNotInMesh, "namespace %s is not part of the mesh", namespace)
	}
	return nil
}

// checkPod checks that a pod may have the caller's identity.
func checkPod(pod *corev1.Pod, caller Caller) error {
	switch {
	case pod == nil:
		return refuse(codes.PermissionDenied, ReasonPodUnknown, "there is no pod %s", caller.Pod)
	case identityOf(pod) != caller.Identity:
		return refuse(codes.PermissionDenied, ReasonPodOther, "pod %s runs as %s, not as %s", caller.Pod, identityOf(pod), caller.Identity)
	case !sidecar.In(pod):
		return refuse(codes.PermissionDenied, ReasonPodNotInjected, "pod %s has no sidecar of the mesh", caller.Pod)
	case ended(pod, time.Now()):
		return refuse(codes.PermissionDenied, ReasonPodEnded, "pod %s has ended", caller.Pod)
	default:
		return nil
	}
}

// pod returns the pod of that name and uid, or nil.
func (v *Verifier) pod(ctx context.Context, id mesh.ProxyID) (*corev1.Pod, error) {
	return v.find(ctx, id, func(*corev1.Pod) bool { return true })
}

// find returns the pod of that name and uid as the cache has it or, where that is
// not enough, as it is now; nil if it is in neither way.
func (v *Verifier) find(ctx context.Context, id mesh.ProxyID, enough func(*corev1.Pod) bool) (*corev1.Pod, error) {
	for _, reader := range []client.Reader{v.cfg.Cached, v.cfg.Live} {
		if reader == nil {
			continue
		}
		pod := &corev1.Pod{}
		err := reader.Get(ctx, client.ObjectKey{Namespace: id.Namespace, Name: id.Pod}, pod)
		if client.IgnoreNotFound(err) != nil {
			return nil, err
		}
		// A cache may still hold the pod's predecessor of the same name, or may not
		// know yet that the sidecar is there.
		if err == nil && string(pod.UID) == id.UID && enough(pod) {
			return pod, nil
		}
	}
	return nil, nil
}

func identityOf(pod *corev1.Pod) mesh.Identity {
	id := mesh.Identity{Namespace: pod.Namespace, ServiceAccount: pod.Spec.ServiceAccountName}
	if id.ServiceAccount == "" {
		id.ServiceAccount = "default"
	}
	return id
}

// ended reports whether a pod has no more use for an identity. One that is being
// deleted may renew until its grace period is over, because a long drain needs a
// valid certificate.
func ended(pod *corev1.Pod, now time.Time) bool {
	if pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
		return true
	}
	return pod.DeletionTimestamp != nil && now.After(pod.DeletionTimestamp.Time)
}

// isGone reports that an object cannot be written because its namespace is going
// or gone.
func isGone(err error) bool {
	return apierrors.IsNotFound(err) || apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause)
}
