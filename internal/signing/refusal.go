package signing

import (
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
)

// A Refusal is why a certificate was not signed. It is the error of
// Certificates.Sign, as whoever decides returns it.
type Refusal struct {
	// Code is one of those that signing.proto lists.
	Code codes.Code
	// Reason is for metrics and for people to search for: short, and never
	// reworded.
	Reason string
	// RetryAfter is when the caller should come back at the earliest; zero leaves
	// that to the caller.
	RetryAfter time.Duration
	// Err says what was wrong. The caller sees it, so it holds nothing that the
	// caller does not know.
	Err error
}

// Error returns the reason and what was wrong.
func (r *Refusal) Error() string { return r.Reason + ": " + r.Err.Error() }

// Unwrap returns Err.
func (r *Refusal) Unwrap() error { return r.Err }

// GRPCStatus makes a Refusal the status of a call, with RetryAfter in its details.
func (r *Refusal) GRPCStatus() *status.Status {
	plain := status.New(r.Code, r.Error())
	if r.RetryAfter <= 0 {
		return plain
	}
	detailed, err := plain.WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(r.RetryAfter)})
	if err != nil {
		return plain // Code is OK, which has no details
	}
	return detailed
}

// RetryAfter returns when whoever refused a call wants it again at the earliest;
// zero where it does not say.
func RetryAfter(err error) time.Duration {
	answer, ok := status.FromError(err)
	if !ok {
		return 0
	}
	for _, detail := range answer.Details() {
		if info, ok := detail.(*errdetails.RetryInfo); ok {
			return max(0, info.GetRetryDelay().AsDuration())
		}
	}
	return 0
}
