package server

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
	"github.com/outrigger-mesh/outrigger/internal/xds"
)

// A mirror is what a proxy has and wants, kept in the plainest way, to compare a
// stream with.
type mirror struct {
	t          *testing.T
	have       map[xds.Type]map[string]string // name to version
	subscribed map[xds.Type]map[string]bool
	unanswered map[xds.Type]map[string]bool
	acks       []*discoveryv3.DeltaDiscoveryRequest
}

func newMirror(t *testing.T) *mirror {
	m := &mirror{t: t, have: map[xds.Type]map[string]string{}, subscribed: map[xds.Type]map[string]bool{}, unanswered: map[xds.Type]map[string]bool{}}
	for _, typ := range xds.Types() {
		m.have[typ], m.subscribed[typ], m.unanswered[typ] = map[string]string{}, map[string]bool{}, map[string]bool{}
	}
	return m
}

// take receives a response through the codec, as Envoy would.
func (m *mirror) take(v any) error {
	buffers, err := codec{}.Marshal(v)
	if err != nil {
		return err
	}
	r := &discoveryv3.DeltaDiscoveryResponse{}
	if err := proto.Unmarshal(buffers.Materialize(), r); err != nil {
		return err
	}
	typ := typeOf(r)
	wild := typ == xds.Cluster || typ == xds.Listener
	for _, resource := range r.GetResources() {
		if !wild && !m.subscribed[typ][resource.GetName()] {
			m.t.Errorf("%s %s was sent, and nobody asked for it", typ, resource.GetName())
		}
		m.have[typ][resource.GetName()] = resource.GetVersion()
		delete(m.unanswered[typ], resource.GetName())
	}
	for _, name := range r.GetRemovedResources() {
		delete(m.have[typ], name)
		delete(m.unanswered[typ], name)
	}
	m.acks = append(m.acks, &discoveryv3.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce()})
	return nil
}

// TestAnyStoryEndsWell has streams live through random stories of snapshots,
// subscriptions and late acknowledgements. Whatever happens, a proxy that has
// acknowledged everything has exactly what it subscribed to of the last Set, was
// sent nothing else, and has an answer to each question.
func TestAnyStoryEndsWell(t *testing.T) {
	ca := newTestCA(t)
	cache := xds.NewCache()
	for seed := range uint64(300) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { tellStory(t, ca, cache, rand.New(rand.NewPCG(seed, 1))) })
	}
}

func tellStory(t *testing.T, ca *testCA, cache *xds.Cache, dice *rand.Rand) {
	m := newMirror(t)
	p := newProxy(mesh.ProxyID{}, vouched{}, "")
	server := New(Config{Metrics: prometheus.NewRegistry(), WarmTime: time.Hour, Log: logr.Discard()})
	st := server.newStream(p, m.take)
	names := []string{"town/a:80", "town/b:80", "town/c:80", "town/d:80", "trust", "nothing"}
	named := []xds.Type{xds.Endpoints, xds.Route, xds.Secret}
	check := func(err error) {
		t.Helper()
		must(t, err)
		must(t, st.advance())
	}
	subscribe := func() {
		typ, name := named[dice.IntN(len(named))], names[dice.IntN(len(names))]
		m.subscribed[typ][name], m.unanswered[typ][name] = true, true
		check(st.handle(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: typ.URL(), ResourceNamesSubscribe: []string{name}}))
	}
	acknowledge := func() {
		if len(m.acks) > 0 {
			ack := m.acks[0]
			m.acks = m.acks[1:]
			check(st.handle(ack))
		}
	}
	var set *xds.Set
	publish := func() {
		for range 1 + dice.IntN(3) { // the proxy may be too busy to see them all
			set = randomSet(t, ca, cache, dice)
			p.retarget(set, time.Now())
		}
		check(nil)
	}
	check(st.handle(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: xds.Cluster.URL()}))
	check(st.handle(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: xds.Listener.URL()}))
	for range 60 {
		switch dice.IntN(8) {
		case 0:
			publish()
		case 1, 2, 3:
			subscribe()
		case 4:
			typ, name := named[dice.IntN(len(named))], names[dice.IntN(len(names))]
			delete(m.subscribed[typ], name)
			delete(m.unanswered[typ], name)
			delete(m.have[typ], name) // Envoy forgets it too
			check(st.handle(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: typ.URL(), ResourceNamesUnsubscribe: []string{name}}))
		default:
			acknowledge()
		}
	}
	publish()
	for len(m.acks) > 0 {
		acknowledge()
	}
	m.check(set, &st.feeds)
}

// check compares what the proxy has with what it should have.
func (m *mirror) check(set *xds.Set, feeds *[]feed) {
	m.t.Helper()
	for _, typ := range xds.Types() {
		want := map[string]string{}
		for r := range set.All(typ) {
			if typ == xds.Cluster || typ == xds.Listener || m.subscribed[typ][r.Name] {
				want[r.Name] = r.Version
			}
		}
		if diff := cmp.Diff(want, m.have[typ]); diff != "" {
			m.t.Errorf("%s (-want +got):\n%s", typ, diff)
		}
		if len(m.unanswered[typ]) > 0 {
			m.t.Errorf("%s: no answer to %v", typ, slices.Sorted(maps.Keys(m.unanswered[typ])))
		}
		if f := (*feeds)[typ]; len(f.pending)+len(f.gone)+len(f.wanted)+len(f.known) > 0 {
			m.t.Errorf("%s: the stream remembers more than it needs: %+v", typ, f)
		}
	}
}

// randomSet is the Set of a town with some of four services.
func randomSet(t *testing.T, ca *testCA, cache *xds.Cache, dice *rand.Rand) *xds.Set {
	t.Helper()
	town := newTown(ca)
	pod := town.pod("x-1", "x")
	for i, name := range []string{"a", "b", "c", "d"} {
		if dice.IntN(3) > 0 {
			town.service(name, byte(i))
			s := &town.parts.Services[len(town.parts.Services)-1]
			s.Endpoints[0].Port += uint16(dice.IntN(2))
			if dice.IntN(4) == 0 {
				s.Protocol = mesh.TCP
			}
		}
	}
	view, _ := town.snapshot(t).View(pod.ID)
	set, err := cache.Set(view)
	must(t, err)
	return set
}
