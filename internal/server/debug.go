package server

import (
	"cmp"
	"maps"
	"net/http"
	"slices"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
	"github.com/outrigger-mesh/outrigger/internal/xds"
)

// A nack is a response that a proxy refused.
type nack struct {
	Type      string    `json:"type"`
	Version   string    `json:"version"`
	Resources string    `json:"resources"`
	Message   string    `json:"message"`
	Time      time.Time `json:"time"`
}

func (p *proxy) acknowledge(t xds.Type, version string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.acked[t] = version
}

func (p *proxy) refuse(n nack) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.nack = &n
}

// A proxyStatus is what /debug/proxies says about a connected proxy.
type proxyStatus struct {
	Proxy    string `json:"proxy"`
	Identity string `json:"identity"`
	Address  string `json:"address"`
	// TLS is the version and the key exchange of its connection.
	TLS   string    `json:"tls,omitempty"`
	Since time.Time `json:"since"`
	// Target is the version that the proxy should have; empty while no snapshot
	// has the pod.
	Target string `json:"target,omitempty"`
	// Trust, TrustDomain, Roots and NotAfter are as in ProxyState.
	Trust       string    `json:"trust,omitempty"`
	TrustDomain string    `json:"trustDomain"`
	Roots       []string  `json:"roots"`
	NotAfter    time.Time `json:"notAfter"`
	// Acknowledged holds the version that the proxy has, by type.
	Acknowledged map[string]string `json:"acknowledged,omitempty"`
	LastRefusal  *nack             `json:"lastRefusal,omitempty"`
}

func (p *proxy) status() proxyStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	status := proxyStatus{
		Proxy: p.id.String(), Identity: p.identity.String(), Address: p.address, TLS: p.tls, Since: p.opened,
		Acknowledged: map[string]string{}, LastRefusal: p.nack,
		Trust: p.trust, TrustDomain: p.shown.trustDomain, Roots: p.shown.roots, NotAfter: p.shown.ends,
	}
	if p.target != nil {
		status.Target = p.target.Version()
	}
	for t, version := range p.acked {
		status.Acknowledged[t.String()] = version
	}
	return status
}

// Debug returns a handler that shows what the server knows, as YAML:
//
//	/debug/proxies                       who is connected, and what it acknowledged
//	/debug/certificates                  the last one signed here for each pod
//	/debug/snapshot                      the mesh
//	/debug/view?proxy=NS/POD[/UID]       a proxy's part of it
//	/debug/envoy?proxy=NS/POD[/UID]      the same in Envoy's words
//
// It shows all of the mesh's policy to whoever asks, so serve it on loopback
// only. It shows no keys: none are here.
func (s *Server) Debug() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /debug/proxies", func(w http.ResponseWriter, _ *http.Request) { show(w, s.statuses()) })
	mux.HandleFunc("GET /debug/certificates", func(w http.ResponseWriter, _ *http.Request) { show(w, s.Issued()) })
	mux.HandleFunc("GET /debug/snapshot", func(w http.ResponseWriter, _ *http.Request) {
		snap, _ := s.current()
		if snap == nil {
			http.Error(w, "no snapshot was published yet", http.StatusServiceUnavailable)
			return
		}
		show(w, snap.Dump())
	})
	mux.HandleFunc("GET /debug/view", func(w http.ResponseWriter, r *http.Request) {
		if view, ok := s.viewOf(w, r); ok {
			show(w, view)
		}
	})
	mux.HandleFunc("GET /debug/envoy", func(w http.ResponseWriter, r *http.Request) {
		view, ok := s.viewOf(w, r)
		if !ok {
			return
		}
		set, err := s.cache.Set(view)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		text, err := set.Dump()
		write(w, text, err)
	})
	return mux
}

func (s *Server) current() (*mesh.Snapshot, []*proxy) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.snapshot, slices.Collect(maps.Keys(s.proxies))
}

func (s *Server) statuses() []proxyStatus {
	_, proxies := s.current()
	statuses := make([]proxyStatus, 0, len(proxies))
	for _, p := range proxies {
		statuses = append(statuses, p.status())
	}
	slices.SortFunc(statuses, func(a, b proxyStatus) int {
		return cmp.Or(cmp.Compare(a.Proxy, b.Proxy), a.Since.Compare(b.Since))
	})
	return statuses
}

// viewOf returns the View of the proxy that a request names, or answers the
// request itself. The uid may be left out.
func (s *Server) viewOf(w http.ResponseWriter, r *http.Request) (mesh.View, bool) {
	name := r.URL.Query().Get("proxy")
	if name == "" {
		http.Error(w, "say which proxy: ?proxy=NAMESPACE/POD", http.StatusBadRequest)
		return mesh.View{}, false
	}
	if snap, _ := s.current(); snap != nil {
		for _, id := range snap.Proxies() {
			if id.String() == name || id.Namespace+"/"+id.Pod == name {
				return snap.View(id)
			}
		}
	}
	http.Error(w, "no proxy "+name+" is in the snapshot; /debug/snapshot lists all workloads", http.StatusNotFound)
	return mesh.View{}, false
}

func show(w http.ResponseWriter, v any) {
	text, err := yaml.Marshal(v)
	write(w, text, err)
}

func write(w http.ResponseWriter, text []byte, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/yaml")
	_, _ = w.Write(text)
}
