package envoytest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"sync"

	"github.com/google/go-cmp/cmp"

	"github.com/outrigger-mesh/outrigger/internal/xds"
)

// A dump is the part of Envoy's config_dump that says what it runs.
type dump struct {
	Configs []struct {
		Active           []versioned `json:"dynamic_active_clusters"`
		Warming          []any       `json:"dynamic_warming_clusters"`
		DynamicListeners []struct {
			Name    string          `json:"name"`
			Active  *versioned      `json:"active_state"`
			Warming json.RawMessage `json:"warming_state"`
			Error   json.RawMessage `json:"error_state"`
			Drain   json.RawMessage `json:"draining_state"`
		} `json:"dynamic_listeners"`
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

// compareDump returns nil when a config_dump says that the Set is what runs.
// Endpoints are not in it; a cluster is active only with them.
func compareDump(text []byte, set *xds.Set) error {
	var d dump
	if err := json.Unmarshal(text, &d); err != nil {
		return fmt.Errorf("decode config_dump: %w", err)
	}
	got := map[string]string{}
	for _, c := range d.Configs {
		if n := len(c.Warming) + len(c.WarmingSecrets); n > 0 {
			return fmt.Errorf("%d clusters and secrets are warming: %v %v", n, c.Warming, c.WarmingSecrets)
		}
		for _, v := range c.Active {
			got["cluster "+v.Cluster.Name] = v.Version
		}
		for _, l := range c.DynamicListeners {
			if l.Active == nil && l.Warming == nil && l.Error == nil && l.Drain != nil {
				continue // gone, but for its connections
			}
			if l.Active == nil || l.Warming != nil || l.Error != nil {
				return fmt.Errorf("listener %s is not live: %s%s", l.Name, l.Warming, l.Error)
			}
			got["listener "+l.Name] = l.Active.Version
		}
		for _, v := range c.Routes {
			got["route "+v.Route.Name] = v.Version
		}
		for _, v := range c.Secrets {
			if set.Resource(xds.Secret, v.Name) != nil {
				got["secret "+v.Name] = v.Version
			}
		}
	}
	want := map[string]string{}
	for _, t := range []xds.Type{xds.Cluster, xds.Listener, xds.Route, xds.Secret} {
		for r := range set.All(t) {
			name := t.String() + " " + r.Name
			if _, ok := got[name]; t == xds.Secret && !ok {
				continue // not asked for: what needs a secret is not live without it
			}
			want[name] = r.Version
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		return fmt.Errorf("what Envoy runs differs (-want +got):\n%s", diff)
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
