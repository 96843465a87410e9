package server

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"github.com/outrigger-mesh/outrigger/internal/limit"
	"github.com/outrigger-mesh/outrigger/internal/mesh"
	"github.com/outrigger-mesh/outrigger/internal/signing"
	"github.com/outrigger-mesh/outrigger/internal/xds"
)

// Credentials are how the server proves who it is, and whose certificates it
// believes.
type Credentials interface {
	// TLS returns the serving certificate as it is now. It is called for each
	// connection and must not block.
	TLS() (*tls.Certificate, error)
	// Trusted returns the accepted trust domains as they are now, each with the
	// roots that vouch for its identities and no others. It must not block either.
	Trusted() ([]mesh.TrustDomain, error)
}

// Pods are asked for a pod that no snapshot has yet, because the caches are
// behind the proxy that has just started.
type Pods interface {
	// Identity returns the service account of a pod that has a proxy and is in the
	// mesh, and whether there is such a pod now.
	Identity(ctx context.Context, id mesh.ProxyID) (mesh.Identity, bool, error)
	// Located reports whether a pod has its certificate from somebody else than the
	// Signer, and has that address now.
	Located(ctx context.Context, id mesh.ProxyID, at netip.Addr) (bool, error)
}

// A Signer decides about requests for certificates.
type Signer interface {
	// Sign answers the request of whoever has the token. The error is a
	// *signing.Refusal when the caller is to blame.
	Sign(ctx context.Context, token string, csr []byte) (signing.Signed, error)
	// Current returns who signs now, or why nobody does.
	Current() (*signing.Authority, error)
}

// A Config says whom a Server asks and what it allows. The interfaces, Log and
// Metrics are required; the zero value of everything else is a default that
// suits a production mesh.
type Config struct {
	Credentials Credentials
	Pods        Pods
	Signer      Signer
	Log         logr.Logger
	Metrics     prometheus.Registerer

	// StreamRate is how many xDS streams may be opened in a second; zero is 200.
	// More of them wait, so that a whole mesh that reconnects at once does not
	// take the server down.
	StreamRate rate.Limit
	// CallerRate is how many of them one certificate may open in a second, and
	// CallerBurst how many at once; zero is 1 and 20.
	CallerRate  rate.Limit
	CallerBurst int
	// SignRate is how many certificates one address may ask for in a second, and
	// SignBurst how many at once; zero is 5 and 50. All pods of a node may share an
	// address.
	SignRate  rate.Limit
	SignBurst int
	// AskRate and AskBurst are the same for asking who signs, which costs a handshake
	// and nothing else; zero is 20 and 250.
	AskRate  rate.Limit
	AskBurst int
	// SignTime is how long such a call may take, from its first byte, which the
	// issuer needs most of; zero is 45 s, a little less than agents wait. ReadTime is
	// how long its message may take to arrive; zero is 10 s.
	SignTime, ReadTime time.Duration
	// Unproven is how many connections without a certificate there may be at once,
	// and UnprovenPerAddress how many of them from one address; zero is 750 and 250.
	// An agent has one while it asks. More are closed, and their agents try again. A
	// hostile one costs 200 kB.
	Unproven, UnprovenPerAddress int
	// WarmTime is how long listeners and routes wait for clusters to be
	// acknowledged; zero is 2 s.
	WarmTime time.Duration
	// ConnectionAge is when a client is asked to connect again, give or take a
	// tenth, so that clients spread over the replicas; zero is 30 minutes.
	ConnectionAge time.Duration
	// IdleTime is how long a connection may carry no call; zero is a minute. A proxy's
	// always carries its stream.
	IdleTime time.Duration
	// StopTime is how long calls that are under way may take when the server
	// stops; zero is 5 s.
	StopTime time.Duration
}

func (c Config) withDefaults() Config {
	c.StreamRate = cmp.Or(c.StreamRate, 200)
	c.CallerRate = cmp.Or(c.CallerRate, 1)
	c.CallerBurst = cmp.Or(c.CallerBurst, 20)
	c.SignRate = cmp.Or(c.SignRate, 5)
	c.SignBurst = cmp.Or(c.SignBurst, 50)
	c.AskRate = cmp.Or(c.AskRate, 20)
	c.AskBurst = cmp.Or(c.AskBurst, 250)
	c.SignTime = cmp.Or(c.SignTime, 45*time.Second)
	c.ReadTime = cmp.Or(c.ReadTime, 10*time.Second)
	c.Unproven = cmp.Or(c.Unproven, 750)
	c.UnprovenPerAddress = cmp.Or(c.UnprovenPerAddress, 250)
	c.WarmTime = cmp.Or(c.WarmTime, 2*time.Second)
	c.ConnectionAge = cmp.Or(c.ConnectionAge, 30*time.Minute)
	c.IdleTime = cmp.Or(c.IdleTime, time.Minute)
	c.StopTime = cmp.Or(c.StopTime, 5*time.Second)
	return c
}

// A Server serves xDS and signing. It is safe for concurrent use.
type Server struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	signing.UnimplementedCertificatesServer

	cfg     Config
	metrics metrics
	opening *rate.Limiter          // streams
	openers limit.Keys[string]     // who opens streams
	asking  limit.Keys[netip.Addr] // for certificates
	polls   limit.Keys[netip.Addr] // who asks who signs
	door    door
	trust   *trust
	cache   *xds.Cache
	steps   steps

	awaited atomic.Pointer[domain] // see [Server.Await]; nil where none is

	mu        sync.Mutex
	snapshot  *mesh.Snapshot // nil until the first Publish
	published time.Time
	proxies   map[*proxy]struct{} // those with an open stream
	issued    map[string]Issued   // by uid of the pod
	stopping  bool
}

// New returns a Server that knows nothing yet: until the first Publish, streams
// are open and hear nothing, so that proxies keep what they have.
func New(cfg Config) *Server {
	cfg = cfg.withDefaults()
	return &Server{
		cfg:     cfg,
		metrics: newMetrics(cfg.Metrics),
		opening: rate.NewLimiter(cfg.StreamRate, int(cfg.StreamRate)+1),
		trust:   newTrust(cfg.Credentials),
		cache:   xds.NewCache(),
		proxies: map[*proxy]struct{}{},
		issued:  map[string]Issued{},
	}
}

// Serve answers on a listener until ctx ends. Then it ends all streams, so that
// proxies go to another replica, and waits for them a little.
func (s *Server) Serve(ctx context.Context, listener net.Listener) error {
	server := grpc.NewServer(s.options()...)
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(server, s)
	signing.RegisterCertificatesServer(server, s)

	following, stop := context.WithCancel(ctx)
	followed := make(chan struct{})
	go func() {
		defer close(followed)
		s.follow(following)
	}()
	defer func() {
		stop()
		<-followed
	}()
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	select {
	case err := <-failed:
		return fmt.Errorf("serve xDS on %s: %w", listener.Addr(), err)
	case <-ctx.Done():
	}
	s.endStreams()
	force := time.AfterFunc(s.cfg.StopTime, server.Stop)
	defer force.Stop()
	server.GracefulStop()
	if err := <-failed; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("serve xDS on %s: %w", listener.Addr(), err)
	}
	return nil
}

// What a connection may use. A reconnecting proxy names every resource that it
// has, which is about 100 bytes for each service and type.
const (
	maxMessage = 4 << 20
	maxHeaders = 16 << 10 // a token is about 1 kB
	maxStreams = 16       // an Envoy opens one, an agent one
)

func (s *Server) options() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.Creds(handshakes{credentials.NewTLS(s.tlsConfig()), s}),
		grpc.ForceServerCodecV2(codec{}),
		grpc.InTapHandle(s.admit),
		grpc.StreamInterceptor(s.surviveStream),
		grpc.UnaryInterceptor(s.surviveCall),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxHeaderListSize(maxHeaders),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.ConnectionTimeout(10 * time.Second),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			Time:                  30 * time.Second,
			Timeout:               10 * time.Second,
			MaxConnectionIdle:     s.cfg.IdleTime,
			MaxConnectionAge:      s.cfg.ConnectionAge, // gRPC adds the jitter
			MaxConnectionAgeGrace: 10 * time.Second,
		}),
	}
}

// tlsConfig asks for a client certificate without requiring one: signing is for
// those who have none, or only one that is past its end, which they must not
// send. Tickets are off because a resumed session would skip the roots of today.
func (s *Server) tlsConfig() *tls.Config {
	base := &tls.Config{
		MinVersion:             tls.VersionTLS13,
		SessionTicketsDisabled: true,
		NextProtos:             []string{"h2"},
	}
	base.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		certificate, err := s.cfg.Credentials.TLS()
		if err != nil {
			return nil, fmt.Errorf("get the serving certificate: %w", err)
		}
		config := base.Clone()
		config.GetConfigForClient = nil
		config.Certificates = []tls.Certificate{*certificate}
		config.ClientAuth = tls.RequestClientCert
		config.VerifyConnection = func(state tls.ConnectionState) error {
			if len(state.PeerCertificates) == 0 {
				return nil
			}
			_, err := s.trust.verify(state.PeerCertificates)
			return err
		}
		return config, nil
	}
	return base
}
