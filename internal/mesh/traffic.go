package mesh

import (
	"slices"
	"time"
)

// Traffic is how a Service wants to be called. Its callers' proxies do it. The
// zero Traffic is the mesh's default, which limits nothing.
type Traffic struct {
	Timeout time.Duration `json:"timeout,omitempty"` // of a whole request; zero is none
	// IdleTimeout ends HTTP streams and other connections on which nothing moves;
	// zero is none.
	IdleTimeout time.Duration `json:"idleTimeout,omitempty"`
	Retry       Retry         `json:"retry,omitzero"`
	Pool        Pool          `json:"pool,omitzero"`
	// Sampling is how many of its requests are traced. It is nil where the mesh's
	// holds.
	Sampling *Sampling `json:"sampling,omitempty"`
}

// A Retry says which failed calls are made again. The zero Retry is the
// mesh's default: only what certainly never reached the application.
type Retry struct {
	// On has Envoy's retry_on words, and numbers that are HTTP status codes. They
	// add to the default.
	On            []string      `json:"on,omitempty"`
	Attempts      uint32        `json:"attempts,omitempty"` // after the first; zero is the default
	PerTryTimeout time.Duration `json:"perTryTimeout,omitempty"`
}

// IsZero reports whether r is the mesh's default.
func (r Retry) IsZero() bool { return len(r.On) == 0 && r.Attempts == 0 && r.PerTryTimeout == 0 }

// A Pool is how one proxy uses the endpoints of a Service. The zero Pool uses all
// of them without limits.
type Pool struct {
	MaxConnections uint32       `json:"maxConnections,omitempty"` // zero is no limit
	MaxRequests    uint32       `json:"maxRequests,omitempty"`    // at a time; zero is no limit
	Outlier        Outlier      `json:"outlier,omitzero"`
	LoadBalancer   LoadBalancer `json:"loadBalancer,omitzero"`
}

// An Outlier says when an endpoint that fails is left alone for a while.
type Outlier struct {
	ConsecutiveErrors uint32        `json:"consecutiveErrors,omitempty"` // zero is never
	Interval          time.Duration `json:"interval,omitempty"`          // zero is the default
	EjectionTime      time.Duration `json:"ejectionTime,omitempty"`      // zero is the default
}

// A LoadBalancer says which endpoint is next.
type LoadBalancer struct {
	Policy Balancing `json:"policy,omitempty"`
	// Header is what HashRing goes by, in lower case; the host is ":authority".
	Header string `json:"header,omitempty"`
}

// Balancing is a way to choose an endpoint. The zero Balancing is the mesh's
// default: the least busy one for HTTP, else one after the other.
type Balancing string

// The ways to choose an endpoint.
const (
	RoundRobin   Balancing = "round-robin"
	LeastRequest Balancing = "least-request"
	Random       Balancing = "random"
	RingHash     Balancing = "ring-hash" // equal headers go to the same one
)

// pool returns how the endpoints of svc are used. Its callers choose no endpoint
// of a headless Service, and what is not HTTP has no headers to go by.
func (svc *Service) pool() Pool {
	p := svc.Traffic.Pool
	if svc.Headless || svc.Protocol == TCP && p.LoadBalancer.Policy == RingHash {
		p.LoadBalancer = LoadBalancer{}
	}
	if svc.Headless {
		p.Outlier = Outlier{}
	}
	return p
}

// treat gives the routes of a bundle what its Service says about requests, and
// what the endpoints that they lead to are chosen by.
func (s *Snapshot) treat(b *Bundle, svc *Service) {
	for i := range b.Routes {
		r := &b.Routes[i]
		r.Timeout, r.IdleTimeout, r.Retry = svc.Traffic.Timeout, svc.Traffic.IdleTimeout, svc.Traffic.Retry
		r.Sampling = s.sampling(svc.Traffic.Sampling)
		for _, share := range r.Shares {
			if to := s.services[share.To]; to != nil && to.pool().LoadBalancer.Header != "" {
				r.HashHeaders = append(r.HashHeaders, to.pool().LoadBalancer.Header)
			}
		}
		slices.Sort(r.HashHeaders)
		r.HashHeaders = slices.Compact(r.HashHeaders)
	}
}
