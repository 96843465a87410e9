package server

import (
	"context"
	"errors"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/go-logr/logr"
	"google.golang.org/grpc/codes"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
	"github.com/outrigger-mesh/outrigger/internal/xds"
)

// The order in which a proxy is brought nearer to its target. Listeners that go
// are told with those that come, because one may take over the other's address.
var (
	early    = []xds.Type{xds.Runtime, xds.Cluster, xds.Endpoints, xds.Secret}
	late     = []xds.Type{xds.Listener, xds.Route}
	farewell = []xds.Type{xds.Route, xds.Cluster, xds.Endpoints, xds.Secret, xds.Runtime}
)

const (
	// firstRequest is how long a client may take to say who it is.
	firstRequest = 10 * time.Second
	// openingWait is how long a client may have to wait for its turn.
	openingWait = 10 * time.Second
	// maxPending is how many responses of a type a proxy may leave without an
	// answer.
	maxPending = 1000
	// maxName is how long a name may be that a proxy asks for. The longest that it
	// learns here, a port of a headless service's endpoint, has about 250 bytes.
	maxName = 512
	// maxAsked is how many names of a type may be asked for that there is nothing
	// for: a proxy may hold on to what is gone, and a hostile one invent names.
	maxAsked = 50_000
	// maxRefusal is how much of a proxy's own words is kept and logged.
	maxRefusal = 4 << 10
)

// A stream is the conversation with one proxy. Only its own goroutine uses it.
type stream struct {
	proxy   *proxy
	log     logr.Logger
	metrics metrics
	steps   *steps
	send    func(any) error

	feeds  []feed // by xds.Type
	nonces uint64
	// warming is shut while clusters are on their way, settling while listeners
	// and routes are.
	warming, settling gate
}

// DeltaAggregatedResources serves one proxy until its certificate ends, its pod
// is gone, or either side hangs up.
func (s *Server) DeltaAggregatedResources(rpc discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	requests, failed := receive(rpc)
	first, p, err := s.open(rpc.Context(), requests, failed)
	if err != nil {
		s.metrics.refused.WithLabelValues(reasonOf(err)).Inc()
		s.cfg.Log.V(verbosity(reasonOf(err), reasonNoCertificate)).Info("xDS stream refused", "address", clientAddress(rpc.Context()).String(), "reason", reasonOf(err), "error", err.Error())
		return err
	}
	defer s.leave(p)
	st := s.newStream(p, rpc.SendMsg)
	st.log.V(1).Info("xDS stream open", "address", p.address)
	expired := time.NewTimer(time.Until(p.shown.ends))
	defer expired.Stop()
	p.renew(replacedIn(time.Until(p.shown.ends)), "the certificate is due to be replaced")
	defer p.stopRenewal()
	err = st.handle(first)
	for err == nil {
		if err = st.advance(); err != nil {
			break
		}
		st.report()
		select {
		case <-rpc.Context().Done():
			err = rpc.Context().Err()
		case err = <-failed:
		case <-p.ended:
			err = p.why()
		case <-expired.C:
			err = refuse(codes.Unauthenticated, reasonEnded, "the client certificate has ended")
		case request := <-requests:
			err = st.handle(request)
		case <-p.wake:
		case <-st.warming.timer.C:
			st.warming.late = true
		case <-st.settling.timer.C:
			st.settling.late = true
		}
	}
	st.log.V(1).Info("xDS stream over", "why", err.Error())
	if stale(err) {
		hangUp(rpc.Context())
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// newStream returns a stream that has neither heard nor said anything.
func (s *Server) newStream(p *proxy, send func(any) error) *stream {
	st := &stream{
		proxy: p, log: s.cfg.Log.WithValues("proxy", p.id.String()), metrics: s.metrics, steps: &s.steps, send: send,
		warming: newGate(s.cfg.WarmTime), settling: newGate(s.cfg.WarmTime),
	}
	for _, t := range xds.Types() {
		st.feeds = append(st.feeds, feed{typ: t})
	}
	return st
}

// receive reads the requests of a stream until it ends, which it does at the
// latest when the call that serves it returns.
func receive(rpc discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) (<-chan *discoveryv3.DeltaDiscoveryRequest, <-chan error) {
	requests, failed := make(chan *discoveryv3.DeltaDiscoveryRequest), make(chan error, 1)
	go func() {
		for {
			request, err := rpc.Recv()
			if err != nil {
				failed <- err
				return
			}
			select {
			case requests <- request:
			case <-rpc.Context().Done():
				return
			}
		}
	}()
	return requests, failed
}

// open finds out who is calling, and whether it may. It returns the first
// request and the proxy.
func (s *Server) open(ctx context.Context, requests <-chan *discoveryv3.DeltaDiscoveryRequest, failed <-chan error) (*discoveryv3.DeltaDiscoveryRequest, *proxy, error) {
	shown, err := s.shown(ctx)
	if err != nil {
		return nil, nil, err
	}
	// Before the turn of all, so that one caller cannot take everybody's.
	if !s.openers.Allow(callerOf(ctx, shown.leaf()), s.cfg.CallerRate, s.cfg.CallerBurst) {
		return nil, nil, refuse(codes.ResourceExhausted, reasonRate, "this certificate opens streams too often")
	}
	turn, cancel := context.WithTimeout(ctx, openingWait)
	defer cancel()
	if err := s.opening.Wait(turn); err != nil {
		return nil, nil, refuse(codes.ResourceExhausted, reasonTooMany, "too many streams are being opened")
	}
	var first *discoveryv3.DeltaDiscoveryRequest
	patience := time.NewTimer(firstRequest)
	defer patience.Stop()
	select {
	case first = <-requests:
	case err := <-failed:
		return nil, nil, refuse(codes.Canceled, reasonNoRequest, "the stream ended without a request: %w", err)
	case <-patience.C:
		return nil, nil, refuse(codes.DeadlineExceeded, reasonNoRequest, "no request came in %s", firstRequest)
	}
	id, err := bind(shown, first.GetNode().GetId())
	if err != nil {
		return nil, nil, err
	}
	if err := s.known(ctx, id, shown.identity); err != nil {
		return nil, nil, err
	}
	if err := s.located(ctx, shown.leaf(), id); err != nil {
		return nil, nil, err
	}
	p := newProxy(id, shown, clientAddress(ctx).String())
	p.tls = privacyOf(ctx)
	return first, p, s.join(p)
}

func newProxy(id mesh.ProxyID, shown vouched, address string) *proxy {
	return &proxy{
		id: id, identity: shown.identity, shown: shown, address: address, opened: time.Now(),
		wake: make(chan struct{}, 1), ended: make(chan struct{}), acked: map[xds.Type]string{},
	}
}

// handle takes in a request: an answer to a response, a change of what the proxy
// wants, or both.
func (s *stream) handle(request *discoveryv3.DeltaDiscoveryRequest) error {
	t := slices.IndexFunc(xds.Types(), func(t xds.Type) bool { return t.URL() == request.GetTypeUrl() })
	if t < 0 {
		s.log.V(1).Info("proxy asks for a type that it is never sent", "type", request.GetTypeUrl())
		return nil
	}
	f := &s.feeds[t]
	names := slices.Concat(request.GetResourceNamesSubscribe(), request.GetResourceNamesUnsubscribe())
	if slices.ContainsFunc(names, func(name string) bool { return len(name) > maxName }) {
		return refuse(codes.InvalidArgument, reasonTooMany, "the name of a resource has more than %d bytes", maxName)
	}
	if !f.asked {
		f.begin(request.GetInitialResourceVersions())
	} else if request.GetResponseNonce() != "" {
		s.landed(f, request)
	}
	f.subscribe(request.GetResourceNamesSubscribe())
	f.unsubscribe(request.GetResourceNamesUnsubscribe())
	if len(f.missing) > maxAsked {
		return refuse(codes.ResourceExhausted, reasonTooMany, "names without a resource: more than %d", maxAsked)
	}
	if !f.begun {
		return nil // advance answers, in the right order
	}
	found, none := f.answers(nil)
	if len(found)+len(none) == 0 {
		return nil
	}
	return s.respond(f, found, none, time.Time{})
}

// landed takes note of what the proxy says to a response.
func (s *stream) landed(f *feed, request *discoveryv3.DeltaDiscoveryRequest) {
	flight, ok := f.land(request.GetResponseNonce())
	if !ok {
		return // said before
	}
	refusal := request.GetErrorDetail()
	if refusal == nil {
		if !flight.published.IsZero() {
			s.metrics.acked.WithLabelValues(f.typ.String()).Observe(time.Since(flight.published).Seconds())
		}
		f.refused = false
		return
	}
	f.refused = true
	message := refusal.GetMessage()
	message = strings.ToValidUTF8(message[:min(len(message), maxRefusal)], "")
	s.metrics.nacks.WithLabelValues(f.typ.String()).Inc()
	s.log.Error(errors.New(message), "proxy refused configuration", "type", f.typ.String(), "resources", flight.names())
	s.proxy.refuse(nack{Type: f.typ.String(), Version: flight.set.Version(), Resources: flight.names(), Message: message, Time: time.Now()})
}

// advance brings the proxy as near to its target as the order allows. It can be
// called at any time.
func (s *stream) advance() error {
	target, published := s.proxy.aim()
	if target == nil {
		return nil
	}
	for _, t := range early {
		if err := s.bring(&s.feeds[t], target, published); err != nil {
			return err
		}
	}
	// Envoy acknowledges clusters when they are warm.
	if s.warming.shut(s.feeds[xds.Cluster].bringing()) {
		return nil
	}
	for _, t := range late {
		if err := s.bring(&s.feeds[t], target, published); err != nil {
			return err
		}
	}
	// What routes still lead to must not go before they lead elsewhere. A proxy
	// that reconnects asks for its routes before it acknowledges listeners.
	if !s.feeds[xds.Listener].begun || s.settling.shut(s.feeds[xds.Listener].bringing() || s.feeds[xds.Route].bringing()) {
		return nil
	}
	for _, t := range farewell {
		if names := s.feeds[t].farewell(); len(names) > 0 {
			if err := s.respond(&s.feeds[t], nil, names, published); err != nil {
				return err
			}
		}
	}
	return nil
}

// report says, for people, which version the proxy has of each type. It has one
// when it acknowledged all that led there, be it nothing.
func (s *stream) report() {
	defer func() {
		if key, ok := s.trusts(); ok {
			s.proxy.acknowledgeTrust(key)
		}
	}()
	for i := range s.feeds {
		f := &s.feeds[i]
		if f.begun && f.sent != f.acked && !f.refused && len(f.pending)+len(f.gone) == 0 {
			f.acked = f.sent
			s.proxy.acknowledge(f.typ, f.sent.Version())
		}
	}
}

// bring sends what the proxy lacks of one type.
func (s *stream) bring(f *feed, target *xds.Set, published time.Time) error {
	if !f.asked || f.begun && f.sent == target {
		return nil
	}
	first := !f.begun
	if first {
		published = time.Time{} // the proxy came late; the snapshot did not
	}
	resources := f.move(target, s.steps.between(f.sent, target))
	found, removed := f.answers(resources)
	if len(found) > 0 {
		resources = slices.Concat(resources, found)
	}
	if f.typ == xds.Listener {
		removed = append(removed, f.farewell()...)
	}
	f.begun, f.known = true, nil
	// A first answer that says that there is nothing lets Envoy go on starting.
	if len(resources)+len(removed) == 0 && (!first || !f.wildcard()) {
		return nil
	}
	return s.respond(f, resources, removed, published)
}

// respond sends one response.
func (s *stream) respond(f *feed, resources []*xds.Resource, removed []string, published time.Time) error {
	if len(f.pending) >= maxPending {
		return refuse(codes.ResourceExhausted, reasonTooMany, "%d responses are not acknowledged", len(f.pending))
	}
	s.nonces++
	r := &response{typ: f.typ, version: f.sent.Version(), nonce: strconv.FormatUint(s.nonces, 10), resources: resources, removed: removed}
	f.pending = append(f.pending, flight{nonce: r.nonce, set: f.sent, resources: few(resources), removed: few(removed), published: published})
	switch f.typ {
	case xds.Cluster:
		s.warming.again()
	case xds.Listener, xds.Route:
		s.settling.again()
	case xds.Endpoints, xds.Secret, xds.Runtime:
	}
	s.metrics.pushes.WithLabelValues(f.typ.String()).Inc()
	s.metrics.bytes.WithLabelValues(f.typ.String()).Add(float64(r.size()))
	return s.send(r)
}

// A gate holds something up while acknowledgements are outstanding, but not for
// ever.
type gate struct {
	wait  time.Duration
	timer *time.Timer
	armed bool
	late  bool // the time is over
}

func newGate(wait time.Duration) gate {
	timer := time.NewTimer(wait)
	timer.Stop()
	return gate{wait: wait, timer: timer}
}

// shut reports whether to wait, given whether there is anything to wait for.
func (g *gate) shut(outstanding bool) bool {
	if !outstanding {
		g.timer.Stop()
		g.armed, g.late = false, false
		return false
	}
	if !g.armed {
		g.armed = true
		g.timer.Reset(g.wait)
	}
	return !g.late
}

// again makes a gate that has given up wait once more, for something new.
func (g *gate) again() {
	if g.late {
		g.armed, g.late = false, false
	}
}
