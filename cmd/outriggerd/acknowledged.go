package main

import (
	"maps"
	"slices"
	"sync"

	"github.com/outrigger-mesh/outrigger/internal/rotation"
)

// keptKeys is how many keys of trust a replica remembers: a rotation has few.
const keptKeys = 32

// generations knows which generation of the authorities the key of a mesh.Trust
// belongs to: what proxies acknowledge is a key. It is safe for concurrent use.
type generations struct {
	mu   sync.Mutex
	keys []string
	of   map[string]int64
	last int64
}

// published says that a snapshot with this trust is about to be given to proxies.
// Where generations begin anew, what was acknowledged before says nothing of them.
func (g *generations) published(key string, generation int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.of == nil || generation < g.last { // somebody restored what was before
		g.of, g.keys, g.last = map[string]int64{}, nil, generation
	}
	if _, ok := g.of[key]; !ok {
		g.keys = append(g.keys, key)
		if len(g.keys) > keptKeys {
			delete(g.of, g.keys[0])
			g.keys = g.keys[1:]
		}
	}
	g.of[key] = max(g.of[key], generation)
	g.last = max(g.last, generation)
}

// generation returns the highest generation of a key, 0 for one that is not known.
func (g *generations) generation(key string) int64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.of[key]
}

// newest returns the generation that was published last.
func (g *generations) newest() int64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.last
}

// known is what this replica knows of each pod that it serves or has signed for: of
// what a pod showed and what it was given since, the later counts.
func (p *plane) known() []rotation.Known {
	byUID := map[string]rotation.Known{}
	for _, state := range p.xds.Proxies() {
		byUID[state.Proxy.UID] = rotation.Known{
			UID: state.Proxy.UID, Connected: true, Trusts: p.acknowledged.generation(state.Trust), At: state.Since,
			Leaf: &rotation.Leaf{Domain: state.TrustDomain, Roots: state.Roots, End: state.NotAfter},
		}
	}
	for _, issued := range p.xds.Issued() {
		known, connected := byUID[issued.UID]
		same := connected && shareRoot(known.Leaf.Roots, issued.Roots) && known.Leaf.End.Equal(issued.NotAfter)
		if !connected || same || issued.Signed.After(known.At) {
			known.UID, known.At = issued.UID, issued.Signed
			known.Leaf = &rotation.Leaf{Authority: issued.Authority, Roots: issued.Roots, End: issued.NotAfter}
		}
		byUID[issued.UID] = known
	}
	return slices.Collect(maps.Values(byUID))
}

// shareRoot reports whether two certificates lead to one root at least. What they lead to
// changes with what is trusted.
func shareRoot(a, b []string) bool {
	return slices.ContainsFunc(a, func(root string) bool { return slices.Contains(b, root) })
}
