package main

import (
	"context"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
)

// A tally counts answers. It may be used by several goroutines.
type tally struct {
	mu    sync.Mutex
	count Counts
}

// Counts is what a tally has counted, and what /status answers.
type Counts struct {
	// Codes counts answers by status code; "error" is no answer.
	Codes map[string]int `json:"codes"`
	// Identities counts answers by who gave them, in stores' own words.
	Identities map[string]int `json:"identities"`
	// LastCode and LastError are those of the newest answer, LastTime its time.
	LastCode  string `json:"lastCode,omitempty"`
	LastError string `json:"lastError,omitempty"`
	LastTime  string `json:"lastTime,omitempty"`
}

func (t *tally) add(r reply) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.count.Codes == nil {
		t.count.Codes, t.count.Identities = map[string]int{}, map[string]int{}
	}
	t.count.Codes[r.code()]++
	if r.Identity != "" {
		t.count.Identities[r.Identity]++
	}
	t.count.LastCode, t.count.LastError, t.count.LastTime = r.code(), "", now()
	if r.Err != nil {
		t.count.LastError = r.Err.Error()
	}
}

// ServeHTTP answers with the counts.
func (t *tally) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	t.mu.Lock()
	defer t.mu.Unlock()
	answer(w, t.count)
}

// A shopper asks a store for books again and again.
type shopper struct {
	server
	name     string // in the header client-app
	store    string
	interval time.Duration
}

func shopperCommand(use, name, short string) *cobra.Command {
	s := shopper{name: name}
	cmd := &cobra.Command{
		Use:   use,
		Short: short,
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return s.run(cmd.Context()) },
	}
	s.flags(cmd, 14001, 0)
	cmd.Flags().StringVar(&s.store, "store", "http://bookstore.bookstore.svc.cluster.local:14001", "URL of the store")
	cmd.Flags().DurationVar(&s.interval, "interval", time.Second, "time between two rounds")
	return cmd
}

func (s *shopper) run(ctx context.Context) error {
	var counts tally
	mux := http.NewServeMux()
	mux.Handle("GET /status", &counts)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.server.run(ctx, mux) })
	group.Go(func() error { s.shop(ctx, &counts); return nil })
	return group.Wait()
}

// shop asks how many books were bought and buys one, each interval, until ctx
// ends.
func (s *shopper) shop(ctx context.Context, counts *tally) {
	client := newClient(true, 1)
	headers := []string{"client-app: " + s.name, "user-agent: Go-http-client/1.1"}
	tick := time.NewTicker(s.interval)
	defer tick.Stop()
	for {
		for _, path := range []string{"/books-bought", "/buy-a-book/new"} {
			q := request{url: s.store + path, method: http.MethodGet, headers: headers, timeout: 5 * time.Second}
			r := q.do(ctx, client)
			if ctx.Err() != nil {
				return // the request was cut off by us
			}
			counts.add(r)
			slog.Info("asked", "path", path, "code", r.code(), "identity", r.Identity, "error", r.Err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
