package envoytest

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"sync"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"

	"github.com/outrigger-mesh/outrigger/internal/xds"
)

// ads is a delta ADS server for one Envoy.
type ads struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	grpc *grpc.Server

	mu      sync.Mutex
	set     *xds.Set
	changed chan struct{} // closed and replaced with every new set
	nacks   []string
	quiet   bool // everything sent and answered
}

func serveADS(l net.Listener) *ads {
	s := &ads{grpc: grpc.NewServer(), changed: make(chan struct{})}
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(s.grpc, s)
	go func() { _ = s.grpc.Serve(l) }() // ends with Stop, which the test's cleanup calls
	return s
}

// publish replaces what Envoy shall have.
func (s *ads) publish(set *xds.Set) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.set, s.quiet, s.nacks = set, false, nil
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *ads) state() (nacks []string, quiet bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.nacks), s.quiet
}

// A session is one stream: what was asked, sent and not yet answered.
type session struct {
	*ads
	stream  discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer
	asked   map[xds.Type]map[string]bool // present once a type was asked for
	sent    map[xds.Type]map[string]string
	pending map[xds.Type]string // nonce
	nonce   int
}

func (s *ads) DeltaAggregatedResources(stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	requests := make(chan *discoveryv3.DeltaDiscoveryRequest)
	go func() {
		defer close(requests)
		for {
			r, err := stream.Recv()
			if err != nil {
				return
			}
			select {
			case requests <- r:
			case <-stream.Context().Done():
				return
			}
		}
	}()
	ss := &session{ads: s, stream: stream, asked: map[xds.Type]map[string]bool{}, sent: map[xds.Type]map[string]string{}, pending: map[xds.Type]string{}}
	for {
		s.mu.Lock()
		changed := s.changed
		s.mu.Unlock()
		select {
		case r, ok := <-requests:
			if !ok {
				return nil
			}
			if err := ss.request(r); err != nil {
				return err
			}
		case <-changed:
		}
		if err := ss.step(); err != nil {
			return err
		}
	}
}

func (ss *session) request(r *discoveryv3.DeltaDiscoveryRequest) error {
	i := slices.IndexFunc(xds.Types(), func(t xds.Type) bool { return t.URL() == r.TypeUrl })
	if i < 0 {
		return fmt.Errorf("unknown type %s", r.TypeUrl)
	}
	t := xds.Types()[i]
	if ss.asked[t] == nil {
		ss.asked[t], ss.sent[t] = map[string]bool{}, maps.Clone(r.InitialResourceVersions)
		if ss.sent[t] == nil {
			ss.sent[t] = map[string]string{}
		}
	}
	for _, name := range r.ResourceNamesSubscribe {
		ss.asked[t][name] = true
		delete(ss.sent[t], name) // who asks is answered
	}
	for _, name := range r.ResourceNamesUnsubscribe {
		delete(ss.asked[t], name)
		delete(ss.sent[t], name)
	}
	if r.ResponseNonce != "" && ss.pending[t] == r.ResponseNonce {
		delete(ss.pending, t)
	}
	if r.ErrorDetail != nil {
		ss.mu.Lock()
		ss.nacks = append(ss.nacks, fmt.Sprintf("%s: %s", t, r.ErrorDetail.Message))
		ss.mu.Unlock()
	}
	return nil
}

// step sends what may be sent now: clusters, endpoints and secrets, then, once
// the clusters are warm, listeners and routes, and at last what is gone.
func (ss *session) step() error {
	ss.mu.Lock()
	set := ss.set
	ss.mu.Unlock()
	if set == nil {
		return nil
	}
	for _, phase := range []struct {
		types   []xds.Type
		removal bool
	}{
		{types: []xds.Type{xds.Runtime, xds.Cluster, xds.Endpoints, xds.Secret}},
		{types: []xds.Type{xds.Listener, xds.Route}},
		{types: []xds.Type{xds.Listener, xds.Route}, removal: true},
		{types: []xds.Type{xds.Cluster, xds.Endpoints, xds.Secret}, removal: true},
	} {
		for _, t := range phase.types {
			if err := ss.send(set, t, phase.removal); err != nil {
				return err
			}
		}
		for _, t := range phase.types {
			if ss.asked[t] == nil && (t == xds.Cluster || t == xds.Listener) || ss.pending[t] != "" {
				return nil
			}
		}
	}
	ss.mu.Lock()
	ss.quiet = ss.set == set
	ss.mu.Unlock()
	return nil
}

func (ss *session) send(set *xds.Set, t xds.Type, removal bool) error {
	if ss.asked[t] == nil || ss.pending[t] != "" {
		return nil
	}
	wildcard := t == xds.Cluster || t == xds.Listener
	want := map[string]*xds.Resource{}
	for r := range set.All(t) {
		if wildcard || ss.asked[t][r.Name] {
			want[r.Name] = r
		}
	}
	response := &discoveryv3.DeltaDiscoveryResponse{TypeUrl: t.URL()}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if ss.sent[t][name] == want[name].Version || removal {
			continue
		}
		decoded, err := want[name].Decode()
		if err != nil {
			return err
		}
		response.Resources = append(response.Resources, decoded)
		ss.sent[t][name] = want[name].Version
	}
	if removal {
		response.RemovedResources = ss.gone(t, want)
	}
	if len(response.Resources)+len(response.RemovedResources) == 0 {
		return nil
	}
	ss.nonce++
	response.Nonce = strconv.Itoa(ss.nonce)
	ss.pending[t] = response.Nonce
	return ss.stream.Send(response)
}

// gone lists what was sent and is no longer wanted, and what was asked for and
// does not exist.
func (ss *session) gone(t xds.Type, want map[string]*xds.Resource) []string {
	var names []string
	for name := range ss.sent[t] {
		if want[name] == nil && ss.sent[t][name] != "" {
			names = append(names, name)
		}
	}
	for name := range ss.asked[t] {
		if _, sent := ss.sent[t][name]; !sent && want[name] == nil && name != "*" {
			names = append(names, name)
		}
	}
	for _, name := range names {
		ss.sent[t][name] = ""
	}
	slices.Sort(names)
	return names
}

var errRefused = errors.New("Envoy refused a resource")
