package main

import (
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"
	"github.com/spf13/cobra"
)

// Echo is how http-echo answers: with the request as it arrived.
type Echo struct {
	Identity string      `json:"identity"`
	Method   string      `json:"method"`
	Protocol string      `json:"protocol"` // "HTTP/1.1"
	Path     string      `json:"path"`     // as sent, neither decoded nor cleaned
	Host     string      `json:"host"`
	Remote   string      `json:"remote"`
	Headers  http.Header `json:"headers"`
	Time     string      `json:"time"`
}

func httpEchoCommand() *cobra.Command {
	var s server
	var identity string
	var delay time.Duration
	var failEvery int64
	cmd := &cobra.Command{
		Use:   "http-echo",
		Short: "Answer every request with 200 and the request as it arrived; over a WebSocket, with each message",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return s.run(cmd.Context(), faulty(delay, failEvery, newHTTPEcho(identity)))
		},
	}
	cmd.Flags().DurationVar(&delay, "slow", 0, "how long requests for paths below /slow take")
	cmd.Flags().Int64Var(&failEvery, "fail-every", 0, "answer each request of that number with 503; 0 for none")
	s.flags(cmd, 8080, 5*time.Second)
	cmd.Flags().StringVar(&identity, "identity", "http-echo", "what the server calls itself in its answers")
	return cmd
}

func newHTTPEcho(identity string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(identityHeader, identity)
		if websocket.IsWebSocketUpgrade(r) {
			echoMessages(w, r)
			return
		}
		answer(w, Echo{
			Identity: identity, Method: r.Method, Protocol: r.Proto, Path: r.RequestURI, Host: r.Host,
			Remote: r.RemoteAddr, Headers: r.Header, Time: now(),
		})
	})
}

// faulty is a handler with the faults that were asked for.
func faulty(slow time.Duration, failEvery int64, handler http.Handler) http.Handler {
	var requests atomic.Int64
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if n := requests.Add(1); failEvery > 0 && n%failEvery == 0 {
			http.Error(w, "asked to fail", http.StatusServiceUnavailable)
			return
		}
		if slow > 0 && strings.HasPrefix(r.URL.Path, "/slow") {
			select {
			case <-r.Context().Done():
				return
			case <-time.After(slow):
			}
		}
		handler.ServeHTTP(w, r)
	})
}

// echoMessages sends back each message of a WebSocket until its client is gone.
func echoMessages(w http.ResponseWriter, r *http.Request) {
	var upgrader websocket.Upgrader
	conn, err := upgrader.Upgrade(w, r, http.Header{identityHeader: w.Header().Values(identityHeader)})
	if err != nil {
		return // it has answered itself
	}
	defer func() { _ = conn.Close() }()
	for {
		kind, message, err := conn.ReadMessage()
		if err != nil || conn.WriteMessage(kind, message) != nil {
			return
		}
	}
}
