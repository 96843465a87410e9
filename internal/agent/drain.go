package agent

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"
)

const (
	// drainCommand is what the agent's socket answers.
	drainCommand = "/drain"

	// drainPoll is how often Envoy is asked whether somebody is still served.
	drainPoll = 200 * time.Millisecond
	// quiet is how long nobody must have come, once somebody has: callers learn
	// from the control plane that this pod is gone, and until then a refusal by
	// Envoy, which they may retry, is better than a connection that breaks.
	quiet = time.Second
	// adminTimeout bounds a question to an Envoy that may hang.
	adminTimeout = 2 * time.Second
	// lastMoments are kept for ending Envoy before the kubelet does it.
	lastMoments = 3 * time.Second
)

// A drain remembers when this pod was told to go.
type drain struct {
	mu      sync.Mutex
	started time.Time
}

// begin starts it and returns the moment at which it started, and whether that
// was now.
func (d *drain) begin(now time.Time) (time.Time, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.started.IsZero() {
		return d.started, false
	}
	d.started = now
	return now, true
}

// beginDrain tells Envoy once. Where it cannot be told, callers are only told
// later, by their connections' end; so that is logged and no more.
func (a *agent) beginDrain(ctx context.Context) time.Time {
	started, first := a.drain.begin(time.Now())
	if !first {
		return started
	}
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	if err := a.admin.startDrain(ctx); err != nil {
		a.Log.Warn("drain not started", "error", err)
		return started
	}
	a.Log.Info("drain started", "seconds", a.Settings.DrainSeconds)
	return started
}

// linger begins the drain where nobody has, and returns when nobody is served
// any more or the pod's time is nearly over.
func (a *agent) linger(ctx context.Context) {
	started := a.beginDrain(ctx)
	ctx, cancel := context.WithDeadline(ctx, deadline(started, a.Settings.DrainSeconds))
	defer cancel()
	ticks := time.NewTicker(drainPoll)
	defer ticks.Stop()
	idle := idleness{busy: time.Now()}
	for {
		seen, err := a.activity(ctx)
		switch {
		case ctx.Err() != nil:
			a.Log.Info("drain ended by the deadline")
			return
		case err != nil:
			a.Log.Warn("activity not known", "error", err)
		case idle.since(seen, time.Now()):
			a.Log.Info("drain ended: nobody is served any more")
			return
		}
		select {
		case <-ctx.Done():
		case <-ticks.C:
		}
	}
}

// deadline leaves the last moments of the grace period to the end itself, or a
// quarter of a short one.
func deadline(started time.Time, seconds int64) time.Time {
	grace := time.Duration(seconds) * time.Second
	return started.Add(grace - min(lastMoments, grace/4))
}

// An activity is what Envoy's inbound side has to do.
type activity struct {
	open int64 // requests and TCP connections now
	ever int64 // connections and requests since it started
}

// activity does not count a connection that waits for its next HTTP request:
// the application that would answer is gone, and peers keep such connections
// for as long as they may.
func (a *agent) activity(ctx context.Context) (activity, error) {
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	counts := map[string]int64{}
	for _, regex := range []string{connectionsOpen, httpOpen, requestsOpen, connectionsEver, requestsEver} {
		n, err := a.admin.sum(ctx, regex)
		if err != nil {
			return activity{}, err
		}
		counts[regex] = n
	}
	return activity{
		open: counts[connectionsOpen] - counts[httpOpen] + counts[requestsOpen],
		ever: counts[connectionsEver] + counts[requestsEver],
	}, nil
}

// The statistics behind an activity; package bootstrap admits them.
const (
	connectionsOpen = `^listener\..*_15003\.downstream_cx_active$`
	connectionsEver = `^listener\..*_15003\.downstream_cx_total$`
	httpOpen        = `^http\.inbound[^.]*\.downstream_cx_active$`
	requestsOpen    = `^http\.inbound[^.]*\.downstream_rq_active$`
	requestsEver    = `^http\.inbound[^.]*\.downstream_rq_total$`
)

// An idleness remembers when it last saw somebody.
type idleness struct {
	last activity
	busy time.Time
}

// since tells whether nobody is served, and nobody came for a while. Whoever
// never served anybody, such as a Job, need not wait for that.
func (i *idleness) since(seen activity, now time.Time) bool {
	if seen.open > 0 || seen.ever != i.last.ever {
		i.busy = now
	}
	i.last = seen
	return seen.ever == 0 || now.Sub(i.busy) >= quiet
}

// serveCommand answers our own binary, on a socket that only this user opens.
func (a *agent) serveCommand(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost || r.URL.Path != drainCommand {
		http.NotFound(w, r)
		return
	}
	a.beginDrain(r.Context())
}

// StartDrain tells the agent that listens at the socket, bootstrap.Files.AgentSocket,
// that the pod is about to end, and returns when it knows. Callers are then told
// to go elsewhere; the application may still be called, and may call out.
func StartDrain(ctx context.Context, socket string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://agent"+drainCommand, nil)
	if err != nil {
		return fmt.Errorf("make a request for the agent: %w", err)
	}
	response, err := unixClient(socket).Do(request)
	if err != nil {
		return fmt.Errorf("ask the agent to drain: %w", err)
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
		return fmt.Errorf("ask the agent to drain: %s: %s", response.Status, strings.TrimSpace(string(text)))
	}
	return nil
}
