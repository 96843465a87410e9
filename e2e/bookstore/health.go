package main

import (
	"log/slog"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
)

func grpcHealthCommand() *cobra.Command {
	var s server
	cmd := &cobra.Command{
		Use:   "grpc-health",
		Short: "Answer gRPC health checks: what a grpc probe asks for",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			listener, err := s.listen(cmd.Context())
			if err != nil {
				return err
			}
			server := grpc.NewServer()
			healthv1.RegisterHealthServer(server, health.NewServer())
			served := make(chan error, 1)
			go func() { served <- server.Serve(listener) }()
			slog.Info("serving", "address", listener.Addr().String())
			select {
			case err := <-served:
				return err
			case <-cmd.Context().Done():
				server.GracefulStop()
				return <-served
			}
		},
	}
	cmd.Flags().Uint16Var(&s.port, "port", 9090, "port to listen on")
	return cmd
}
