package identity

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
	"github.com/outrigger-mesh/outrigger/internal/signing"
)

func wantBusy(t *testing.T, reason string, err error, after time.Duration) {
	t.Helper()
	refusal, ok := errors.AsType[*signing.Refusal](err)
	if !ok || refusal.Code != codes.ResourceExhausted || refusal.Reason != ReasonBusy || refusal.RetryAfter != after {
		t.Errorf("%s: got %+v; want to come back after %s", reason, err, after)
	}
}

func TestQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(2, 1)
		turn := func(took time.Duration, result chan<- error) {
			leave, err := q.enter(t.Context())
			if err == nil {
				<-time.After(took)
				leave()
			}
			result <- err
		}
		results := make(chan error, 4)
		for range 3 { // two have a turn, one waits
			go turn(4*time.Second, results)
			synctest.Wait()
		}
		_, err := q.enter(t.Context())
		wantBusy(t, "one waits already, and nothing is known yet", err, soonestReturn)
		for range 3 {
			must(t, <-results)
		}

		for range 2 {
			go turn(4*time.Second, results)
		}
		synctest.Wait()
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err = q.enter(short)
		wantBusy(t, "no turn came, each of which takes 4 s", err, 4*time.Second)
		for range 2 {
			must(t, <-results)
		}
		if len(q.slots) != 0 || q.waiting != 0 {
			t.Errorf("%d have a turn and %d wait, of nobody", len(q.slots), q.waiting)
		}
	})
}

func TestQueueSaysWhenItWillBeEmpty(t *testing.T) {
	q := newQueue(2, 5)
	q.took, q.waiting = 4*time.Second, 5
	wantBusy(t, "5 wait for 2 slots", q.busy("full"), 12*time.Second)
	q.took = time.Hour
	wantBusy(t, "the issuer hangs", q.busy("full"), latestReturn)
}

// TestWhoseCertificateWasDeclined wants those to be told whose issuer said no or
// nothing, and nobody to be told that it is busy, which passes.
func TestWhoseCertificateWasDeclined(t *testing.T) {
	pod := mesh.ProxyID{Namespace: "shop", Pod: "cart-1", UID: "uid"}
	var told []string
	s := &Signer{Declined: func(whose mesh.ProxyID, why error) { told = append(told, whose.Pod+": "+why.Error()) }}
	denied := declined(codes.PermissionDenied, ReasonDenied, "no certificates on Sundays")
	wantRefusal(t, "what the issuer says stays", s.declined(pod, fmt.Errorf("have it issued: %w", denied)), codes.PermissionDenied, ReasonDenied)
	if denied.RetryAfter != declinedRetry {
		t.Errorf("whoever was denied comes back after %s, want %s", denied.RetryAfter, declinedRetry)
	}
	wantRefusal(t, "it says nothing", s.declined(pod, errors.New("no answer")), codes.Unavailable, ReasonIssuer)
	wantRefusal(t, "it is busy", s.declined(pod, newQueue(1, 1).busy("full")), codes.ResourceExhausted, ReasonBusy)
	if want := []string{"cart-1: no certificates on Sundays", "cart-1: no answer"}; !slices.Equal(told, want) {
		t.Errorf("told %q, want %q", told, want)
	}
}
