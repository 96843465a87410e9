package server

import (
	"context"
	"fmt"
	"runtime/debug"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// A defect that one call meets must not end the streams of all others, which come
// back, and would meet it again. That call fails, and the log says where.

func (s *Server) surviveStream(service any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) (err error) {
	defer func() { err = s.survived(info.FullMethod, recover(), err) }()
	return handle(service, stream)
}

func (s *Server) surviveCall(ctx context.Context, request any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (response any, err error) {
	defer func() { err = s.survived(info.FullMethod, recover(), err) }()
	return handle(ctx, request)
}

func (s *Server) survived(method string, fault any, err error) error {
	if fault == nil {
		return err
	}
	s.cfg.Log.Error(fmt.Errorf("%v", fault), "defect of outriggerd; please report it", "method", method, "stack", string(debug.Stack()))
	return status.Error(codes.Internal, "outriggerd has a defect; see its log")
}
