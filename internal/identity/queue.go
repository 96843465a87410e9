package identity

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/outrigger-mesh/outrigger/internal/signing"
)

// Bounds on what one replica asks an external issuer at once.
const (
	issuerSlots = 32
	issuerQueue = 256
	// Those who find the queue full are asked to come back when it will be empty, as
	// it looks now. Agents add as much again, each its own part of it.
	soonestReturn = time.Second
	latestReturn  = time.Minute
)

// A queue bounds how many requests are with an issuer, and how many wait for
// their turn, so that thousands of pods that start at once neither overwhelm the
// issuer nor pile up here. It is safe for concurrent use.
type queue struct {
	slots chan struct{}
	most  int

	mu      sync.Mutex
	waiting int
	took    time.Duration // one turn, on average
}

func newQueue(slots, most int) *queue {
	return &queue{slots: make(chan struct{}, slots), most: most}
}

// enter waits for a turn, and returns how to give it back. Whoever finds too many
// waiting, or waits in vain, gets a refusal that says when to come back.
func (q *queue) enter(ctx context.Context) (leave func(), err error) {
	select {
	case q.slots <- struct{}{}:
		return q.turn(), nil
	default:
	}
	if !q.wait() {
		return nil, q.busy("%d requests are with the issuer and %d wait for it", cap(q.slots), q.most)
	}
	defer q.noWait()
	select {
	case q.slots <- struct{}{}:
		return q.turn(), nil
	case <-ctx.Done():
		return nil, q.busy("no turn with the issuer came: %w", context.Cause(ctx))
	}
}

// turn begins a turn.
func (q *queue) turn() (leave func()) {
	started := time.Now()
	return func() {
		took := time.Since(started)
		q.mu.Lock()
		if q.took == 0 {
			q.took = took
		}
		q.took += (took - q.took) / 8
		q.mu.Unlock()
		<-q.slots
	}
}

func (q *queue) wait() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.waiting >= q.most {
		return false
	}
	q.waiting++
	return true
}

func (q *queue) noWait() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting--
}

func (q *queue) busy(format string, args ...any) *signing.Refusal {
	q.mu.Lock()
	defer q.mu.Unlock()
	refusal := refuse(codes.ResourceExhausted, ReasonBusy, format, args...)
	empty := q.took * time.Duration(q.waiting/cap(q.slots)+1)
	refusal.RetryAfter = min(max(empty, soonestReturn), latestReturn)
	return refusal
}
