package envoytest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/outrigger-mesh/outrigger/internal/xds"
)

// A dump is the part of Envoy's config_dump that says what it runs.
type dump struct {
	Configs []struct {
		Clusters       []versioned `json:"dynamic_active_clusters"`
		Warming        []any       `json:"dynamic_warming_clusters"`
		Listeners      []listener  `json:"dynamic_listeners"`
		Routes         []versioned `json:"dynamic_route_configs"`
		Secrets        []versioned `json:"dynamic_active_secrets"`
		WarmingSecrets []any       `json:"dynamic_warming_secrets"`
	} `json:"configs"`
}

type versioned struct {
	Name    string `json:"name"`
	Version string `json:"version_info"`
	Cluster struct {
		Name string `json:"name"`
	} `json:"cluster"`
	Route struct {
		Name string `json:"name"`
	} `json:"route_config"`
}

type listener struct {
	Name   string `json:"name"`
	Active *struct {
		Listener json.RawMessage `json:"listener"`
	} `json:"active_state"`
	Warming  json.RawMessage `json:"warming_state"`
	Error    json.RawMessage `json:"error_state"`
	Draining json.RawMessage `json:"draining_state"`
}

// compareDump returns nil when a config_dump says that the Set is what runs.
// Endpoints are not in it; a cluster is active only with them.
func compareDump(text []byte, set *xds.Set) error {
	var d dump
	if err := json.Unmarshal(text, &d); err != nil {
		return fmt.Errorf("decode config_dump: %w", err)
	}
	clusters, routes, secrets := map[string]string{}, map[string]string{}, map[string]string{}
	var listeners []listener
	for _, c := range d.Configs {
		if n := len(c.Warming) + len(c.WarmingSecrets); n > 0 {
			return fmt.Errorf("%d clusters and secrets are warming: %v %v", n, c.Warming, c.WarmingSecrets)
		}
		for _, v := range c.Clusters {
			clusters[v.Cluster.Name] = v.Version
		}
		for _, v := range c.Routes {
			routes[v.Route.Name] = v.Version
		}
		for _, v := range c.Secrets {
			secrets[v.Name] = v.Version
		}
		listeners = append(listeners, c.Listeners...)
	}
	var faults []string
	check := func(t xds.Type, got map[string]string, unasked bool) {
		for r := range set.All(t) {
			if v, ok := got[r.Name]; v != r.Version && (ok || !unasked) {
				faults = append(faults, fmt.Sprintf("%s %s has version %q, not %s", t, r.Name, v, r.Version))
			}
			delete(got, r.Name)
		}
	}
	check(xds.Cluster, clusters, false)
	check(xds.Route, routes, false)  // draining listeners keep theirs beside
	check(xds.Secret, secrets, true) // what needs a secret is not live without it
	for _, name := range slices.Sorted(maps.Keys(clusters)) {
		faults = append(faults, "cluster "+name+" should be gone")
	}
	faults = append(faults, checkListeners(listeners, set)...)
	if len(faults) > 0 {
		return fmt.Errorf("Envoy does not run what it should:\n%s", strings.Join(faults, "\n"))
	}
	return nil
}

// checkListeners compares content: a listener whose chains alone changed keeps
// its old version in the dump.
func checkListeners(got []listener, set *xds.Set) []string {
	var faults []string
	live := map[string]bool{}
	for _, l := range got {
		if l.Warming != nil || l.Error != nil {
			faults = append(faults, fmt.Sprintf("listener %s is not live: %s%s", l.Name, l.Warming, l.Error))
		}
		if l.Active == nil {
			continue // gone, but for its connections
		}
		live[l.Name] = true
		if err := sameListener(l, set.Resource(xds.Listener, l.Name)); err != nil {
			faults = append(faults, fmt.Sprintf("listener %s: %v", l.Name, err))
		}
	}
	for r := range set.All(xds.Listener) {
		if !live[r.Name] {
			faults = append(faults, "listener "+r.Name+" is missing")
		}
	}
	return faults
}

func sameListener(l listener, r *xds.Resource) error {
	if r == nil {
		return fmt.Errorf("it should be gone")
	}
	var got, want listenerv3.Listener
	// The dump names the type of a message inside an Any.
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(l.Active.Listener, &got); err != nil {
		return err
	}
	decoded, err := r.Decode()
	if err != nil {
		return err
	}
	if err := decoded.GetResource().UnmarshalTo(&want); err != nil {
		return err
	}
	if !proto.Equal(&got, &want) {
		return fmt.Errorf("another one runs:\n%s", l.Active.Listener)
	}
	return nil
}

// A lockedBuffer collects what a process writes while others read.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
