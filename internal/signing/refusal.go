package signing

import (
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// A Refusal is why a certificate was not signed. It is the error of
// Certificates.Sign, as whoever decides returns it.
type Refusal struct {
	// Code is one of those that signing.proto lists.
	Code codes.Code
	// Reason is for metrics and for people to search for: short, and never
	// reworded.
	Reason string
	// Err says what was wrong. The caller sees it, so it holds nothing that the
	// caller does not know.
	Err error
}

// Error returns the reason and what was wrong.
func (r *Refusal) Error() string { return r.Reason + ": " + r.Err.Error() }

// Unwrap returns Err.
func (r *Refusal) Unwrap() error { return r.Err }

// GRPCStatus makes a Refusal the status of a call.
func (r *Refusal) GRPCStatus() *status.Status { return status.New(r.Code, r.Error()) }
