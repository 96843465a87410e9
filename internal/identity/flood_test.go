package identity

import (
	"context"
	"encoding/base64"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// stuckReviewer is an API server that answers nobody.
type stuckReviewer struct{ busy, most atomic.Int64 }

func (r *stuckReviewer) Create(ctx context.Context, _ *authenticationv1.TokenReview, _ metav1.CreateOptions) (*authenticationv1.TokenReview, error) {
	r.most.Store(max(r.most.Load(), r.busy.Add(1)))
	defer r.busy.Add(-1)
	<-ctx.Done()
	return nil, ctx.Err()
}

// TestReviewsAreBounded floods with tokens that only the API server can tell from
// good ones.
func TestReviewsAreBounded(t *testing.T) {
	reviewer := &stuckReviewer{}
	v := NewVerifier(VerifierConfig{Audience: "outrigger", Reviews: reviewer})
	v.patience = time.Second
	payload := fmt.Sprintf(`{"aud":["outrigger"],"exp":%d}`, time.Now().Add(time.Hour).Unix())
	token := "e30." + base64.RawURLEncoding.EncodeToString([]byte(payload)) + ".forged"
	ctx, cancel := context.WithCancel(t.Context())
	const callers = 10 * maxReviews
	answers := make(chan error, callers)
	for range callers {
		go func() {
			_, err := v.Verify(ctx, token)
			answers <- err
		}()
	}
	for range callers - maxReviews {
		err := <-answers
		wantRefusal(t, "whoever gets no turn is told to come back", err, codes.ResourceExhausted, ReasonReviewsBusy)
	}
	if most := reviewer.most.Load(); most != maxReviews {
		t.Errorf("the API server was asked by %d at once; want %d", most, maxReviews)
	}
	cancel()
	for range maxReviews {
		wantRefusal(t, "a review that fails is worth another try", <-answers, codes.Unavailable, ReasonReview)
	}
	if _, err := v.Verify(ctx, token); len(v.reviews) != 0 {
		t.Errorf("turns were not given back: %v", err)
	}
}
