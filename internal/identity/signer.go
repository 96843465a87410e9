package identity

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"

	"github.com/outrigger-mesh/outrigger/internal/limit"
	"github.com/outrigger-mesh/outrigger/internal/mesh"
	"github.com/outrigger-mesh/outrigger/internal/signing"
)

// A Signer signs for pods that prove who they are.
type Signer struct {
	// Verifier finds out who is asking.
	Verifier *Verifier
	// Authorities say who signs at the moment.
	Authorities *Authorities
	// Lifetime of the certificates; zero is 24 h.
	Lifetime time.Duration
	// PodRate is how many certificates one pod may have signed in a second, and
	// PodBurst how many at once; zero is one in ten seconds and ten.
	PodRate  rate.Limit
	PodBurst int

	pods limit.Keys[string] // by uid
	// Declined is told of pods for which the issuer did not sign, and why; nil for
	// nobody. It is not told that the issuer is busy.
	Declined func(pod mesh.ProxyID, why error)
}

const (
	defaultLifetime = 24 * time.Hour
	defaultPodRate  = rate.Limit(0.1)
	defaultPodBurst = 10
	podRetry        = 10 * time.Second
)

// Sign answers the request of whoever has the token. The error is a
// *signing.Refusal.
func (s *Signer) Sign(ctx context.Context, token string, csr []byte) (signing.Signed, error) {
	request, err := parseRequest(csr)
	if err != nil {
		return signing.Signed{}, err
	}
	now, err := s.Authorities.Now()
	if err != nil {
		return signing.Signed{}, refuse(codes.Unavailable, ReasonIssuer, "%w", err)
	}
	caller, err := s.Verifier.Verify(ctx, token)
	if err != nil {
		return signing.Signed{}, err
	}
	lifetime := s.Lifetime
	if lifetime == 0 {
		lifetime = defaultLifetime
	}
	template := newTemplate(caller.Identity, now.Signing.Authority.TrustDomain, caller.Pod.UID, lifetime)
	template.MayNameNoPod = mayNameNoPod(now.Signing.Authority)
	if err := checkRequest(request, template); err != nil {
		return signing.Signed{}, err
	}
	if !s.pods.Allow(caller.Pod.UID, cmp.Or(s.PodRate, defaultPodRate), cmp.Or(s.PodBurst, defaultPodBurst)) {
		return signing.Signed{}, &signing.Refusal{
			Code: codes.ResourceExhausted, Reason: ReasonPodRate, RetryAfter: podRetry,
			Err: fmt.Errorf("pod %s has certificates signed too often", caller.Pod),
		}
	}
	issued, err := issue(ctx, now.Signing.Issuer, request, template)
	if err != nil {
		return signing.Signed{}, s.declined(caller.Pod, err)
	}
	return signing.Signed{Chain: raw(issued), Roots: raw(now.Roots()), By: by(now.Signing.Authority)}, nil
}

// Current returns who signs now.
func (s *Signer) Current() (*signing.Authority, error) {
	now, err := s.Authorities.Now()
	if err != nil {
		return nil, err
	}
	return by(now.Signing.Authority), nil
}

// by names an authority for agents. Its generation is of what it is made of, so
// that all certificates are renewed when one of the same name is another.
func by(a Authority) *signing.Authority {
	definition, err := json.Marshal(a)
	if err != nil {
		panic(fmt.Sprintf("an authority must encode: %v", err)) // only strings are in it
	}
	sum := sha256.Sum256(definition)
	return &signing.Authority{Name: a.Name, Generation: hex.EncodeToString(sum[:8]), TrustDomain: a.TrustDomain}
}

// declined makes a refusal of what went wrong with the issuer, which may have made
// one itself.
func (s *Signer) declined(pod mesh.ProxyID, err error) *signing.Refusal {
	refusal, ok := errors.AsType[*signing.Refusal](err)
	if !ok {
		refusal = refuse(codes.Unavailable, ReasonIssuer, "%w", err)
	}
	if s.Declined != nil && refusal.Reason != ReasonBusy {
		s.Declined(pod, refusal.Err)
	}
	return refusal
}
