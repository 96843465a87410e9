package server

import (
	"strings"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"

	"github.com/outrigger-mesh/outrigger/internal/xds"
)

// expect checks the next responses, and acknowledges them.
func (e *envoy) expect(reason string, want ...said) {
	e.t.Helper()
	for _, w := range want {
		e.ack(e.expectOne(reason, w))
	}
}

func (e *envoy) expectOne(reason string, want said) *discoveryv3.DeltaDiscoveryResponse {
	e.t.Helper()
	r := e.hear()
	if diff := cmp.Diff(want, what(r)); diff != "" {
		e.t.Fatalf("%s\nresponse (-want +got):\n%s", reason, diff)
	}
	return r
}

const (
	shop = "town/shop:80"
	cart = "town/cart:80"
	bank = "town/bank:80"
)

// names lists what a Set has of a type.
func names(set *xds.Set, typ xds.Type) []string {
	var all []string
	for r := range set.All(typ) {
		all = append(all, r.Name)
	}
	return all
}

func TestFirstSync(t *testing.T) {
	w := newWorld(t, nil)
	town := newTown(w.ca)
	pod := town.pod("a-1", "a")
	town.service("shop", 1)
	set := w.publish(t, town, pod)
	e := w.join(t, pod)

	e.subscribe(xds.Cluster)
	e.subscribe(xds.Listener, "*")
	clusters := e.expectOne("all clusters come first", said{Type: "cluster", Names: names(set, xds.Cluster)})
	e.subscribe(xds.Endpoints, shop)
	e.expect("endpoints do not wait for the clusters, which wait for them", said{Type: "endpoints", Names: []string{shop}})
	e.ack(clusters)
	e.expect("listeners wait until the clusters are acknowledged", said{Type: "listener", Names: names(set, xds.Listener)})
	e.subscribe(xds.Route, shop)
	e.expect("a route is sent when it is asked for", said{Type: "route", Names: []string{shop}})
	e.subscribe(xds.Secret, "trust", "nothing")
	e.expect("a name without a resource is answered too, or Envoy would wait", said{Type: "secret", Names: []string{"trust"}, Gone: []string{"nothing"}})
	e.subscribe(xds.Endpoints, shop)
	e.expect("a later subscription is always answered", said{Type: "endpoints", Names: []string{shop}})
	e.subscribe(xds.Cluster, shop, "nothing")
	e.expect("even one that a wildcard covers", said{Type: "cluster", Names: []string{shop}, Gone: []string{"nothing"}})
}

func TestOrderOfAPush(t *testing.T) {
	w := newWorld(t, nil)
	town := newTown(w.ca)
	pod := town.pod("a-1", "a")
	town.service("shop", 1)
	e := w.join(t, pod)
	before := w.publish(t, town, pod)
	e.settle(before)

	town.service("cart", 2)
	w.publish(t, town, pod)
	clusters := e.expectOne("a new cluster", said{Type: "cluster", Names: []string{cart}})
	e.subscribe(xds.Endpoints, cart)
	e.expect("its endpoints", said{Type: "endpoints", Names: []string{cart}})
	e.ack(clusters)
	e.expect("its listener when it is warm", said{Type: "listener", Names: []string{cart}})
	e.subscribe(xds.Route, cart)
	e.expect("its route", said{Type: "route", Names: []string{cart}})

	town.parts.Services[1].Endpoints[0].Port = 9090
	w.publish(t, town, pod)
	e.expect("other endpoints change nothing else", said{Type: "endpoints", Names: []string{cart}})

	town.parts.Services = town.parts.Services[:1]
	w.publish(t, town, pod)
	e.expect("what leads there goes first", said{Type: "listener", Gone: []string{cart}}, said{Type: "route", Gone: []string{cart}})
	e.unsubscribe(xds.Route, cart)
	e.expect("then where it led", said{Type: "cluster", Gone: []string{cart}}, said{Type: "endpoints", Gone: []string{cart}})
	e.unsubscribe(xds.Endpoints, cart)
	e.subscribe(xds.Endpoints, shop)
	e.expect("the server has heard that", said{Type: "endpoints", Names: []string{shop}})

	town.service("cart", 2)
	w.publish(t, town, pod)
	e.expect("what the proxy has unsubscribed from is not sent again", said{Type: "cluster", Names: []string{cart}}, said{Type: "listener", Names: []string{cart}})
}

func TestRemovalsWaitForRoutes(t *testing.T) {
	w := newWorld(t, nil)
	town := newTown(w.ca)
	pod := town.pod("a-1", "a")
	town.service("shop", 1)
	town.service("cart", 2)
	e := w.join(t, pod)
	e.settle(w.publish(t, town, pod))

	town.parts.Services = town.parts.Services[:1]
	town.service("bank", 3)
	w.publish(t, town, pod)
	e.expect("", said{Type: "cluster", Names: []string{bank}})
	listeners := e.expectOne("one address may change hands, so these go together", said{Type: "listener", Names: []string{bank}, Gone: []string{cart}})
	e.subscribe(xds.Endpoints, bank)
	e.expect("no removal came before", said{Type: "endpoints", Names: []string{bank}})
	e.ack(listeners)
	e.expect("", said{Type: "route", Gone: []string{cart}}, said{Type: "cluster", Gone: []string{cart}}, said{Type: "endpoints", Gone: []string{cart}})
}

func TestColdClustersDelayListenersOnlySoLong(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.WarmTime = 10 * time.Millisecond })
	town := newTown(w.ca)
	pod := town.pod("a-1", "a")
	town.service("shop", 1)
	e := w.join(t, pod)
	e.settle(w.publish(t, town, pod))

	town.service("cart", 2)
	w.publish(t, town, pod)
	e.expectOne("the proxy never acknowledges these clusters", said{Type: "cluster", Names: []string{cart}})
	e.expect("but goes on", said{Type: "listener", Names: []string{cart}})
	town.service("bank", 3)
	w.publish(t, town, pod)
	e.expectOne("and on", said{Type: "cluster", Names: []string{bank}})
	e.expect("", said{Type: "listener", Names: []string{bank}})
}

func TestBusyProxySkipsToTheNewest(t *testing.T) {
	w := newWorld(t, nil)
	town := newTown(w.ca)
	pod := town.pod("a-1", "a")
	town.service("shop", 1)
	e := w.join(t, pod)
	e.settle(w.publish(t, town, pod))

	town.service("cart", 2)
	w.publish(t, town, pod)
	first := e.expectOne("", said{Type: "cluster", Names: []string{cart}})
	town.service("bank", 3)
	w.publish(t, town, pod)
	second := e.expectOne("new clusters need not wait", said{Type: "cluster", Names: []string{bank}})
	town.parts.Services[1] = town.parts.Services[2]
	town.parts.Services = town.parts.Services[:2]
	w.publish(t, town, pod)
	e.ack(first)
	e.subscribe(xds.Endpoints, bank)
	e.expect("the second response is not acknowledged yet", said{Type: "endpoints", Names: []string{bank}})
	e.ack(second)
	e.expect("the listener of the cart was never needed", said{Type: "listener", Names: []string{bank}}, said{Type: "cluster", Gone: []string{cart}})
}

func TestReconnect(t *testing.T) {
	w := newWorld(t, nil)
	town := newTown(w.ca)
	pod := town.pod("a-1", "a")
	town.service("shop", 1)
	town.service("cart", 2)
	set := w.publish(t, town, pod)
	first := w.join(t, pod)
	have := first.settle(set)
	first.cancel()

	t.Run("NothingNew", func(t *testing.T) {
		e := w.join(t, pod)
		e.again(xds.Cluster, []string{"*"}, have[xds.Cluster])
		e.again(xds.Endpoints, []string{shop, cart}, have[xds.Endpoints])
		e.again(xds.Listener, []string{"*"}, have[xds.Listener])
		e.again(xds.Route, []string{shop, cart}, have[xds.Route])
		e.expect("an answer that holds nothing", said{Type: "cluster"}, said{Type: "listener"})
		e.subscribe(xds.Endpoints, shop)
		e.expect("nothing was sent that the proxy has", said{Type: "endpoints", Names: []string{shop}})
		e.cancel()
	})

	town.parts.Services[1].Endpoints[0].Port = 9090 // of the cart
	town.parts.Services = town.parts.Services[1:]   // without the shop
	town.service("bank", 3)
	w.publish(t, town, pod)
	t.Run("ThingsChanged", func(t *testing.T) {
		e := w.join(t, pod)
		e.again(xds.Cluster, nil, have[xds.Cluster])
		e.again(xds.Endpoints, []string{cart, shop}, have[xds.Endpoints])
		e.again(xds.Listener, nil, have[xds.Listener])
		clusters := e.expectOne("only the new one; the old one is still in use", said{Type: "cluster", Names: []string{bank}})
		e.expect("", said{Type: "endpoints", Names: []string{cart}, Gone: []string{shop}})
		e.ack(clusters)
		e.expect("", said{Type: "listener", Names: []string{bank}, Gone: []string{shop}}, said{Type: "cluster", Gone: []string{shop}})
	})
}

func TestRefusedConfigurationStopsNothing(t *testing.T) {
	w := newWorld(t, nil)
	town := newTown(w.ca)
	pod := town.pod("a-1", "a")
	town.service("shop", 1)
	e := w.join(t, pod)
	e.settle(w.publish(t, town, pod))

	town.service("cart", 2)
	w.publish(t, town, pod)
	e.nack(e.expectOne("", said{Type: "cluster", Names: []string{cart}}), "cart does not please")
	e.expect("listeners do not wait for what was refused", said{Type: "listener", Names: []string{cart}})
	town.service("bank", 3)
	w.publish(t, town, pod)
	e.expect("what was refused is not sent again", said{Type: "cluster", Names: []string{bank}}, said{Type: "listener", Names: []string{bank}})
	if got := value(t, w.metrics.nacks.WithLabelValues("cluster")); got != 1 {
		t.Errorf("want one refusal of clusters counted, got %v", got)
	}
	status := w.statuses()[0]
	if status.LastRefusal == nil || status.LastRefusal.Message != "cart does not please" || status.LastRefusal.Resources != cart {
		t.Errorf("want the refusal in the status, got %+v", status.LastRefusal)
	}
}

func TestProxyWhoseViewIsTheSameHearsNothing(t *testing.T) {
	w := newWorld(t, nil)
	town := newTown(w.ca)
	pod := town.pod("a-1", "a")
	town.service("shop", 1)
	e := w.join(t, pod)
	e.settle(w.publish(t, town, pod))

	town.pod("a-2", "a") // a replica changes nothing for the first one
	w.publish(t, town, pod)
	town.service("cart", 2)
	w.publish(t, town, pod)
	e.expectOne("the first thing heard is the second snapshot", said{Type: "cluster", Names: []string{cart}})
}

func TestInvalidConfigurationIsNotSent(t *testing.T) {
	w := newWorld(t, nil)
	town := newTown(w.ca)
	pod := town.pod("a-1", "a")
	town.service("shop", 1)
	e := w.join(t, pod)
	e.settle(w.publish(t, town, pod))

	bundle := town.parts.Settings.TrustBundle
	town.parts.Settings.TrustBundle = "" // Envoy has no way to trust nobody
	err := w.Publish(t.Context(), town.snapshot(t))
	if err == nil || !strings.Contains(err.Error(), pod.ID.String()) {
		t.Errorf("want an error that names the proxy, got %v", err)
	}
	if got := value(t, w.metrics.invalid); got != 1 {
		t.Errorf("want one invalid configuration counted, got %v", got)
	}
	town.parts.Settings.TrustBundle = bundle
	town.service("cart", 2)
	w.publish(t, town, pod)
	e.expectOne("the proxy keeps the last good configuration and goes on from there", said{Type: "cluster", Names: []string{cart}})
}

func TestAcknowledgedVersions(t *testing.T) {
	w := newWorld(t, nil)
	town := newTown(w.ca)
	pod := town.pod("a-1", "a")
	town.service("shop", 1)
	e := w.join(t, pod)
	set := w.publish(t, town, pod)
	e.settle(set)
	want := map[string]string{}
	for _, typ := range xds.Types() {
		want[typ.String()] = set.Version()
	}
	eventually(t, "all types are acknowledged", func() bool { return cmp.Equal(want, w.statuses()[0].Acknowledged) })
	if status := w.statuses()[0]; status.Target != set.Version() || status.Proxy != pod.ID.String() || status.Identity != "town/a" {
		t.Errorf("unexpected status %+v", status)
	}
}
