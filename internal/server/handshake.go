package server

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/outrigger-mesh/outrigger/internal/limit"
)

const (
	// maxUnproven is how many bytes a connection may bring, from the first of its
	// handshake, while its client has shown no certificate. An agent sends about
	// 4 kB; the longest token and the longest request fit in. gRPC has no limit for
	// this: whoever begins a message may send all of maxMessage, in each call.
	maxUnproven = 32 << 10
	// maxHandshakes is how many connections of one address may be in their
	// handshake. All proxies and agents of a node may share an address, and come back
	// at once.
	maxHandshakes = 1000
)

// A connection is what the server knows of one: its TLS state, and how to end it.
type connection struct {
	credentials.TLSInfo
	conn net.Conn
}

func connectionOf(ctx context.Context) (connection, bool) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return connection{}, false
	}
	c, ok := p.AuthInfo.(connection)
	return c, ok
}

// A door holds how many connections there are of which nobody knows who they are.
type door struct {
	handshakes limit.Places[netip.Addr]
	unproven   limit.Places[netip.Addr] // that have no certificate
}

// handshakes are credentials whose connections can be ended by those who serve
// them: gRPC can only end a stream, and Envoy would open the next one over the same
// connection, with the same certificate. They bound what clients without a
// certificate may send, and how many connections they have.
type handshakes struct {
	credentials.TransportCredentials
	server *Server
}

// ServerHandshake does the handshake.
func (h handshakes) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	from, door := addressOf(raw.RemoteAddr()), &h.server.door
	if !door.handshakes.Take(from, maxHandshakes, 0) {
		return nil, nil, h.server.turnedAway(from, "handshakes of this address")
	}
	defer door.handshakes.Leave(from)
	bounded := &unproven{Conn: raw, left: maxUnproven}
	conn, info, err := h.TransportCredentials.ServerHandshake(bounded)
	if err != nil {
		return nil, nil, err
	}
	tls, ok := info.(credentials.TLSInfo)
	if !ok {
		return nil, nil, refuse(codes.Internal, "no-tls", "the handshake came to no TLS")
	}
	if len(tls.State.PeerCertificates) > 0 {
		bounded.proven = true
	} else {
		if !door.unproven.Take(from, h.server.cfg.UnprovenPerAddress, h.server.cfg.Unproven) {
			return nil, nil, h.server.turnedAway(from, "connections without a certificate")
		}
		bounded.closed = sync.OnceFunc(func() { door.unproven.Leave(from) })
	}
	return conn, connection{TLSInfo: tls, conn: bounded}, nil
}

// Clone returns a copy.
func (h handshakes) Clone() credentials.TransportCredentials {
	return handshakes{h.TransportCredentials.Clone(), h.server}
}

// turnedAway counts a connection that there is no place for, and says why.
func (s *Server) turnedAway(from netip.Addr, what string) error {
	s.metrics.turnedAway.Inc()
	s.cfg.Log.V(1).Info("connection refused", "address", from.String(), "reason", "too many "+what)
	return refuse(codes.ResourceExhausted, reasonTooMany, "there are too many %s", what)
}

// An unproven is a connection whose client has shown no certificate, or not yet.
type unproven struct {
	net.Conn
	left   int    // how many bytes it may still bring
	proven bool   // it may bring any number
	closed func() // what to do when it is closed; may be nil
}

var errUnproven = errors.New("a client without a certificate sent too much")

// Read reads, as far as the client may send.
func (u *unproven) Read(p []byte) (int, error) {
	if u.proven {
		return u.Conn.Read(p)
	}
	if u.left == 0 {
		return 0, errUnproven
	}
	n, err := u.Conn.Read(p[:min(len(p), u.left)])
	u.left -= n
	return n, err
}

// Close closes the connection and gives its place back.
func (u *unproven) Close() error {
	if u.closed != nil {
		u.closed()
	}
	return u.Conn.Close()
}
