package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/time/rate"
)

// A load is many requests of one kind.
type load struct {
	request
	requests    int
	duration    time.Duration
	rate        float64
	concurrency int
	keepAlive   bool
	failFast    bool
}

// A Summary is what load prints: one line of JSON.
type Summary struct {
	URL      string `json:"url"`
	Start    string `json:"start"`
	End      string `json:"end"`
	Requests int    `json:"requests"`
	// Codes counts answers by status code; "error" is no answer.
	Codes      map[string]int `json:"codes"`
	Identities map[string]int `json:"identities"`
	// Errors counts the reasons for which there was no answer.
	Errors map[string]int `json:"errors,omitempty"`
	// Refusals counts the first lines of the bodies of answers that are not 2xx.
	Refusals map[string]int `json:"refusals,omitempty"`
	// Latency holds percentiles of the time to an answer, in milliseconds:
	// p50, p90, p99 and max.
	Latency map[string]float64 `json:"latencyMilliseconds"`
}

func loadCommand() *cobra.Command {
	var l load
	cmd := &cobra.Command{
		Use:   "load",
		Short: "Send many requests, then print counts by status code and identity, and latencies",
		Long: "Send requests until there were enough, the time is over, or a signal comes; then print what came back\n" +
			"as one line of JSON. The exit status is 0 whatever the answers were, unless --fail-fast is given.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := l.check(); err != nil {
				return err
			}
			summary, failed, err := l.run(cmd.Context())
			if err != nil {
				return err
			}
			if err := json.NewEncoder(cmd.OutOrStdout()).Encode(summary); err != nil {
				return err
			}
			if failed {
				return errNotAsWished
			}
			return nil
		},
	}
	l.flags(cmd)
	flags := cmd.Flags()
	flags.IntVar(&l.requests, "requests", 1000, "how many requests; 0 for no limit")
	flags.DurationVar(&l.duration, "duration", 0, "for how long; 0 for no limit")
	flags.Float64Var(&l.rate, "rate", 0, "requests each second; 0 for as many as go")
	flags.IntVar(&l.concurrency, "concurrency", 8, "how many requests may be under way")
	flags.BoolVar(&l.keepAlive, "keep-alive", true, "use connections again; false makes one for each request")
	flags.BoolVar(&l.failFast, "fail-fast", false, "end with status 1 at the first answer that is not 2xx")
	return cmd
}

func (l *load) check() error {
	switch {
	case l.requests < 0:
		return fmt.Errorf("--requests %d: want 0 or more", l.requests)
	case l.requests == 0 && l.duration == 0:
		return errors.New("neither --requests nor --duration sets an end")
	case l.concurrency < 1:
		return fmt.Errorf("--concurrency %d: want 1 or more", l.concurrency)
	case l.rate < 0:
		return fmt.Errorf("--rate %v: want 0 or more", l.rate)
	}
	return nil
}

// run sends the requests. It reports whether it stopped for a failure.
func (l *load) run(ctx context.Context) (summary Summary, failed bool, err error) {
	summary = Summary{URL: l.url, Start: now(), Errors: map[string]int{}, Refusals: map[string]int{}}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	caller, err := l.caller(l.keepAlive, l.concurrency)
	if err != nil {
		return summary, false, err
	}
	defer caller.close()
	turns, replies := l.turns(ctx), make(chan reply)
	var workers sync.WaitGroup
	for range l.concurrency {
		workers.Go(func() {
			for range turns {
				// What is under way when the time is over is finished:
				// cutting it off would count as a failure of the server.
				replies <- caller.call(context.WithoutCancel(ctx))
			}
		})
	}
	go func() { workers.Wait(); close(replies) }()

	var counts tally
	var took []time.Duration
	for r := range replies {
		counts.add(r)
		took = append(took, r.Took)
		summary.Requests++
		if r.Err != nil {
			summary.Errors[r.Err.Error()]++
		}
		if r.Refusal != "" {
			line, _, _ := strings.Cut(r.Refusal, "\n")
			summary.Refusals[line]++
		}
		if l.failFast && !r.good() {
			failed = true
			stop()
		}
	}
	summary.End, summary.Codes, summary.Identities = now(), counts.count.Codes, counts.count.Identities
	summary.Latency = percentiles(took)
	return summary, failed, nil
}

// turns returns a channel that gives leave for one request at a time, at the
// wanted rate, and is closed when there are to be no more.
func (l *load) turns(ctx context.Context) <-chan struct{} {
	limit := rate.Inf
	if l.rate > 0 {
		limit = rate.Limit(l.rate)
	}
	// What a busy machine keeps it from sending in time, up to a tenth of a second's
	// worth, is sent late. It does not begin with as many at once.
	late := max(1, int(l.rate/10))
	limiter := rate.NewLimiter(limit, late)
	limiter.AllowN(time.Now(), late-1)
	cancel := context.CancelFunc(func() {})
	if l.duration > 0 {
		ctx, cancel = context.WithTimeout(ctx, l.duration)
	}
	turns := make(chan struct{})
	go func() {
		defer cancel()
		defer close(turns)
		for sent := 0; l.requests == 0 || sent < l.requests; sent++ {
			if limiter.Wait(ctx) != nil {
				return
			}
			select {
			case <-ctx.Done():
				return
			case turns <- struct{}{}:
			}
		}
	}()
	return turns
}

func percentiles(took []time.Duration) map[string]float64 {
	if len(took) == 0 {
		return map[string]float64{}
	}
	slices.Sort(took)
	at := func(share float64) float64 {
		index := min(int(share*float64(len(took))), len(took)-1)
		return float64(took[index].Microseconds()) / 1000
	}
	return map[string]float64{"p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "max": at(1)}
}
