package signing

import (
	"context"
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// refusing answers every call with a refusal.
type refusing struct {
	UnimplementedCertificatesServer
	refusal *Refusal
}

func (r refusing) Sign(context.Context, *SignRequest) (*SignResponse, error) { return nil, r.refusal }

// TestRetryAfterArrives asks over a real connection.
func TestRetryAfterArrives(t *testing.T) {
	cases := map[string]struct {
		reason  string
		refusal *Refusal
		want    time.Duration
	}{
		"Busy": {
			reason:  "An agent learns when to come back.",
			refusal: &Refusal{Code: codes.ResourceExhausted, Reason: "issuer-busy", RetryAfter: 1500 * time.Millisecond, Err: errors.New("288 wait")},
			want:    1500 * time.Millisecond,
		},
		"NotSaid": {
			reason:  "Without it the agent's own back-off counts.",
			refusal: &Refusal{Code: codes.Unavailable, Reason: "issuer-failed", Err: errors.New("no answer")},
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			server := grpc.NewServer()
			RegisterCertificatesServer(server, refusing{refusal: tc.refusal})
			served := make(chan error, 1)
			go func() { served <- server.Serve(listener) }()
			t.Cleanup(func() { server.Stop(); <-served })
			conn, err := grpc.NewClient("passthrough:///"+listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_, err = NewCertificatesClient(conn).Sign(t.Context(), &SignRequest{})
			if status.Code(err) != tc.refusal.Code {
				t.Errorf("%s\ngot %v, want %s", tc.reason, err, tc.refusal.Code)
			}
			if got := RetryAfter(fmt.Errorf("have the key signed: %w", err)); got != tc.want {
				t.Errorf("%s\nretry after %s, want %s", tc.reason, got, tc.want)
			}
		})
	}
}
