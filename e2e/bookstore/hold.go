package main

import (
	"context"
	"encoding/json"
	"io"
	"time"

	"github.com/spf13/cobra"
)

// A hold keeps one connection open and sends a request over it every interval.
type hold struct {
	request
	interval time.Duration
	duration time.Duration
}

// A Line is what hold and job print for each request.
type Line struct {
	Time     string `json:"time"` // of the answer
	Status   int    `json:"status"`
	Identity string `json:"identity,omitempty"`
	// Reused is false for the first request of a connection.
	Reused bool `json:"reused"`
	// Refusal is the beginning of the body of an answer that is not 2xx.
	Refusal string `json:"refusal,omitempty"`
	Error   string `json:"error,omitempty"`
}

func holdCommand() *cobra.Command {
	var h hold
	cmd := &cobra.Command{
		Use:   "hold",
		Short: "Keep one connection open, send a request every interval, print a line of JSON for each",
		Long: "Keep one connection open, send a request every interval, and print a line of JSON for each. Over grpc it is\n" +
			"one stream, over ws and tcp one message or line that must come back. What breaks is opened again.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return h.run(cmd.Context(), cmd.OutOrStdout()) },
	}
	h.flags(cmd)
	cmd.Flags().DurationVar(&h.interval, "interval", 100*time.Millisecond, "time between two requests")
	cmd.Flags().DurationVar(&h.duration, "duration", 0, "for how long; 0 until the signal to stop")
	return cmd
}

func (h *hold) run(ctx context.Context, w io.Writer) error {
	if h.duration > 0 {
		timed, cancel := context.WithTimeout(ctx, h.duration)
		defer cancel()
		ctx = timed
	}
	caller, err := h.caller(true, 1)
	if err != nil {
		return err
	}
	defer caller.close()
	out := json.NewEncoder(w)
	tick := time.NewTicker(h.interval)
	defer tick.Stop()
	for {
		r := caller.call(ctx)
		if ctx.Err() != nil {
			return nil // the request was cut off by us
		}
		line := Line{Time: now(), Status: r.Status, Identity: r.Identity, Reused: r.Reused, Refusal: r.Refusal}
		if r.Err != nil {
			line.Error = r.Err.Error()
		}
		if err := out.Encode(line); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
