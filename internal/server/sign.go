package server

import (
	"context"
	"errors"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"

	"github.com/outrigger-mesh/outrigger/internal/signing"
)

const (
	maxRequest = 4 << 10 // of a CSR; one for P-256 is about 400 bytes
	maxToken   = 8 << 10
)

// Reasons of refusals that the Signer is not asked about.
const (
	reasonRate  = "rate-limited"
	reasonSize  = "request-size"
	reasonToken = "no-token"
)

// Sign passes a request for a certificate on to the Signer, after the checks
// that cost nothing.
func (s *Server) Sign(ctx context.Context, request *signing.SignRequest) (*signing.SignResponse, error) {
	arrived(ctx)
	response, err := s.sign(ctx, request)
	if err == nil {
		s.metrics.signed.WithLabelValues("signed", "").Inc()
		return response, nil
	}
	refusal, refused := errors.AsType[*signing.Refusal](err)
	if !refused {
		s.metrics.signed.WithLabelValues("failed", "error").Inc()
		s.cfg.Log.Error(err, "certificate not signed", "address", clientAddress(ctx).String())
		return nil, status.Error(codes.Unavailable, "the certificate could not be signed; see the log of outriggerd")
	}
	return nil, s.refused(ctx, refusal)
}

// refused counts and logs a refusal, and returns it.
func (s *Server) refused(ctx context.Context, refusal *signing.Refusal) error {
	outcome := "refused"
	if refusal.Code == codes.Unavailable {
		outcome = "failed"
	}
	s.metrics.signed.WithLabelValues(outcome, refusal.Reason).Inc()
	s.cfg.Log.V(verbosity(refusal.Reason, reasonRate)).Info("certificate refused", "address", clientAddress(ctx).String(), "reason", refusal.Reason, "error", refusal.Err.Error())
	return refusal
}

// admit judges a call before any of its message is read, which those who have no
// certificate could make long and slow: an address may ask for certificates only
// so often, and each call has its end.
func (s *Server) admit(ctx context.Context, call *tap.Info) (context.Context, error) {
	switch call.FullMethodName {
	case signing.Certificates_Sign_FullMethodName:
	case signing.Certificates_Current_FullMethodName:
		if !s.polls.Allow(clientAddress(ctx), s.cfg.AskRate, s.cfg.AskBurst) {
			return nil, refuse(codes.ResourceExhausted, reasonRate, "this address asks too often")
		}
		return s.bounded(ctx), nil
	default:
		return ctx, nil
	}
	if !s.asking.Allow(clientAddress(ctx), s.cfg.SignRate, s.cfg.SignBurst) {
		return nil, s.refused(ctx, refuse(codes.ResourceExhausted, reasonRate, "this address asks too often"))
	}
	return s.bounded(ctx), nil
}

// bounded gives a call its end.
func (s *Server) bounded(ctx context.Context) context.Context {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.SignTime)
	reading := time.AfterFunc(s.cfg.ReadTime, cancel)
	context.AfterFunc(ctx, func() { // gRPC ends the parent with the call
		reading.Stop()
		cancel()
	})
	return context.WithValue(ctx, readTimer{}, reading)
}

// readTimer is the key of the timer that ends a call whose message does not come.
type readTimer struct{}

// arrived takes note that a call's message is there.
func arrived(ctx context.Context) {
	if reading, ok := ctx.Value(readTimer{}).(*time.Timer); ok {
		reading.Stop()
	}
}

func (s *Server) sign(ctx context.Context, request *signing.SignRequest) (*signing.SignResponse, error) {
	if n := len(request.GetCsr()); n == 0 || n > maxRequest {
		return nil, refuse(codes.InvalidArgument, reasonSize, "the certificate request has %d bytes; 1 to %d are allowed", n, maxRequest)
	}
	token, err := bearer(ctx)
	if err != nil {
		return nil, err
	}
	trusted, err := s.trust.messages()
	if err != nil {
		return nil, err
	}
	signed, err := s.cfg.Signer.Sign(ctx, token, request.GetCsr())
	if err != nil {
		return nil, err
	}
	if err := s.note(signed); err != nil {
		return nil, err
	}
	return &signing.SignResponse{Chain: signed.Chain, Roots: signed.Roots, Authority: signed.By, Trusted: trusted}, nil
}

// Current says who signs and what is trusted.
func (s *Server) Current(ctx context.Context, _ *signing.CurrentRequest) (*signing.CurrentResponse, error) {
	arrived(ctx)
	authority, err := s.cfg.Signer.Current()
	if err != nil {
		return nil, status.Error(codes.Unavailable, "nobody signs now; see the log of outriggerd")
	}
	trusted, err := s.trust.messages()
	if err != nil {
		return nil, status.Error(codes.Unavailable, "nothing is trusted now; see the log of outriggerd")
	}
	return &signing.CurrentResponse{Authority: authority, Trusted: trusted}, nil
}

// bearer returns the token of a call.
func bearer(ctx context.Context) (string, error) {
	values := metadata.ValueFromIncomingContext(ctx, "authorization")
	if len(values) != 1 {
		return "", refuse(codes.Unauthenticated, reasonToken, "the call has %d authorization values; exactly one is allowed", len(values))
	}
	scheme, token, _ := strings.Cut(values[0], " ")
	if !strings.EqualFold(scheme, "bearer") || token == "" || len(token) > maxToken {
		return "", refuse(codes.Unauthenticated, reasonToken, "authorization is not of the form Bearer TOKEN with at most %d bytes", maxToken)
	}
	return token, nil
}
