package main

import (
	"net/http"
	"time"

	"github.com/spf13/cobra"
)

// Echo is how http-echo answers: with the request as it arrived.
type Echo struct {
	Identity string      `json:"identity"`
	Method   string      `json:"method"`
	Path     string      `json:"path"` // as sent, neither decoded nor cleaned
	Host     string      `json:"host"`
	Remote   string      `json:"remote"`
	Headers  http.Header `json:"headers"`
	Time     string      `json:"time"`
}

func httpEchoCommand() *cobra.Command {
	var s server
	var identity string
	cmd := &cobra.Command{
		Use:   "http-echo",
		Short: "Answer every request with 200 and the request as it arrived",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return s.run(cmd.Context(), newHTTPEcho(identity)) },
	}
	s.flags(cmd, 8080, 5*time.Second)
	cmd.Flags().StringVar(&identity, "identity", "http-echo", "what the server calls itself in its answers")
	return cmd
}

func newHTTPEcho(identity string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(identityHeader, identity)
		answer(w, Echo{
			Identity: identity, Method: r.Method, Path: r.RequestURI, Host: r.Host,
			Remote: r.RemoteAddr, Headers: r.Header, Time: now(),
		})
	})
}
