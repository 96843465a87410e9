package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
)

func grpcHealthCommand() *cobra.Command {
	var s server
	var identity string
	cmd := &cobra.Command{
		Use:   "grpc-health",
		Short: "Answer gRPC health checks, which a grpc probe asks for, and reflection, which streams both ways",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			listener, err := s.listen(cmd.Context())
			if err != nil {
				return err
			}
			server := newGRPCServer(identity)
			served := make(chan error, 1)
			go func() { served <- server.Serve(listener) }()
			slog.Info("serving", "address", listener.Addr().String())
			select {
			case err := <-served:
				return err
			case <-cmd.Context().Done():
			}
			// Streams do not end by themselves.
			stop := time.AfterFunc(s.drain, server.Stop)
			defer stop.Stop()
			server.GracefulStop()
			return <-served
		},
	}
	s.flags(cmd, 9090, 0)
	cmd.Flags().StringVar(&identity, "identity", "grpc-health", "what the server calls itself in its answers")
	return cmd
}

func newGRPCServer(identity string) *grpc.Server {
	name := metadata.Pairs(identityHeader, identity)
	server := grpc.NewServer(
		grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
			if err := grpc.SetHeader(ctx, name); err != nil {
				return nil, err
			}
			return handle(ctx, req)
		}),
		grpc.StreamInterceptor(func(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
			if err := stream.SetHeader(name); err != nil {
				return err
			}
			return handle(srv, stream)
		}),
	)
	healthv1.RegisterHealthServer(server, health.NewServer())
	reflection.Register(server)
	return server
}

// A grpcCaller asks for a server's health or, where it keeps its connection, asks
// over one stream what services there are. A reply's status is what HTTP has for
// the code: 200 for OK.
type grpcCaller struct {
	*request
	conn      *grpc.ClientConn
	keepAlive bool

	// What is kept open, for one call at a time.
	mu     sync.Mutex
	stream reflectionv1.ServerReflection_ServerReflectionInfoClient
	end    context.CancelFunc
}

func newGRPCCaller(q *request, address string, keepAlive bool, creds credentials.TransportCredentials) (caller, error) {
	// Of several addresses, one is enough; and a proxy of the environment's is none of ours.
	conn, err := grpc.NewClient("dns:///"+address, grpc.WithTransportCredentials(creds), grpc.WithNoProxy())
	if err != nil {
		return nil, fmt.Errorf("--url %s: %w", q.url, err)
	}
	return &grpcCaller{request: q, conn: conn, keepAlive: keepAlive}, nil
}

func (c *grpcCaller) call(ctx context.Context) (r reply) {
	start := time.Now()
	defer func() { r.Took = time.Since(start) }()
	if c.keepAlive {
		return c.ask(ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	var header metadata.MD
	answer, err := healthv1.NewHealthClient(c.conn).Check(ctx, &healthv1.HealthCheckRequest{}, grpc.Header(&header), grpc.WaitForReady(false))
	if err != nil {
		return ofGRPC(err)
	}
	if answer.GetStatus() != healthv1.HealthCheckResponse_SERVING {
		return reply{Err: fmt.Errorf("the server's health is %s", answer.GetStatus())}
	}
	return reply{Status: http.StatusOK, Identity: first(header)}
}

// ask sends a request over the stream that is kept open.
func (c *grpcCaller) ask(ctx context.Context) reply {
	c.mu.Lock()
	defer c.mu.Unlock()
	reused := c.stream != nil
	if c.stream == nil {
		// The stream outlives this call, but not whoever makes the calls.
		var streaming context.Context
		streaming, c.end = context.WithCancel(ctx)
		stream, err := reflectionv1.NewServerReflectionClient(c.conn).ServerReflectionInfo(streaming)
		if err != nil {
			c.end()
			return ofGRPC(err)
		}
		c.stream = stream
	}
	timeout := time.AfterFunc(c.timeout, c.end)
	defer timeout.Stop()
	header, err := c.exchange()
	if err != nil {
		c.end()
		c.stream = nil
		r := ofGRPC(err)
		r.Reused = reused
		return r
	}
	return reply{Status: http.StatusOK, Identity: first(header), Reused: reused}
}

func (c *grpcCaller) exchange() (metadata.MD, error) {
	question := &reflectionv1.ServerReflectionRequest{
		MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{},
	}
	// What is wrong with a stream is told by Recv; Send only says that it ended.
	_ = c.stream.Send(question)
	if _, err := c.stream.Recv(); err != nil {
		return nil, err
	}
	return c.stream.Header()
}

func (c *grpcCaller) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stream != nil {
		c.end()
	}
	_ = c.conn.Close()
}

// ofGRPC is the reply that an error of gRPC stands for.
func ofGRPC(err error) reply {
	state := status.Convert(err)
	code, known := map[codes.Code]int{
		codes.PermissionDenied: http.StatusForbidden, codes.Unauthenticated: http.StatusUnauthorized,
		codes.Unimplemented: http.StatusNotImplemented, codes.ResourceExhausted: http.StatusTooManyRequests,
	}[state.Code()]
	if !known {
		return reply{Err: err}
	}
	return reply{Status: code, Refusal: state.Message()}
}

func first(header metadata.MD) string {
	if values := header.Get(identityHeader); len(values) > 0 {
		return values[0]
	}
	return ""
}
