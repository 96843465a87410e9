package xds

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

// A Cache makes Sets of Views and encodes what they share only once. It is safe
// for concurrent use.
type Cache struct {
	mu        sync.Mutex
	parts     map[string]*kept[*Part]            // by part key
	outbounds map[*mesh.Outbound]*kept[*bundles] // by identity, which the map keeps alive
	sets      map[string]*kept[*Set]             // by version
}

// bundles are the parts of an Outbound's bundles and the hash of their keys.
type bundles struct {
	parts   []*Part
	version string
}

// A kept value is forgotten when nobody asked for it since the last Forget.
type kept[T any] struct {
	value T
	used  bool
}

// NewCache returns an empty Cache.
func NewCache() *Cache {
	return &Cache{
		parts:     map[string]*kept[*Part]{},
		outbounds: map[*mesh.Outbound]*kept[*bundles]{},
		sets:      map[string]*kept[*Set]{},
	}
}

// Forget drops what no Set was made of since the last call of Forget. Call it
// once after the Sets of all connected proxies were made. Sets that are already
// out stay valid.
func (c *Cache) Forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	forget(c.parts)
	forget(c.outbounds)
	forget(c.sets)
}

func forget[K comparable, T any](m map[K]*kept[T]) {
	for key, k := range m {
		if !k.used {
			delete(m, key)
		}
		k.used = false
	}
}

// Set returns the configuration of a proxy that has the View v. The error names
// the part that Envoy would refuse; the last good Set of the proxy stays right
// then, for a Set is all or nothing. Equal Views give the same pointer.
func (c *Cache) Set(v mesh.View) (*Set, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	own, err := c.own(v)
	if err != nil {
		return nil, err
	}
	out, err := c.bundles(v.Outbound)
	if err != nil {
		return nil, err
	}
	s := newSet(own, out.parts, out.version)
	s.trust = v.Trust.Key
	return keep(c.sets, s.version, func() (*Set, error) { return s, nil })
}

// bundles returns the parts of all bundles. An Outbound is shared by the proxies
// of a service account, so its bundles are walked through once for all of them.
func (c *Cache) bundles(o *mesh.Outbound) (*bundles, error) {
	if k, ok := c.outbounds[o]; ok && k.used {
		return k.value, nil
	}
	b := &bundles{}
	h := sha256.New()
	losers := conflicts(o.Bundles)
	for _, bundle := range o.Bundles {
		taken := losers[bundle]
		p, err := c.part("bundle "+bundle.Key+taken.key(), func(e *encoder) { e.bundle(bundle, taken) })
		if err != nil {
			return nil, err
		}
		b.parts = append(b.parts, p)
	}
	slices.SortFunc(b.parts, func(p, q *Part) int { return strings.Compare(p.Name, q.Name) })
	for _, p := range b.parts {
		_, _ = io.WriteString(h, p.Key+"\n")
	}
	b.version = hex.EncodeToString(h.Sum(nil))
	c.outbounds[o] = &kept[*bundles]{value: b, used: true}
	return b, nil
}

// own returns the parts of a proxy's halves, sorted by name.
func (c *Cache) own(v mesh.View) ([]*Part, error) {
	in := inboundPart{Inbound: v.Inbound, trust: v.Trust, dualStack: dualStack(v.Outbound)}
	type half struct {
		key   string
		write func(*encoder)
	}
	halves := []half{
		{fmt.Sprintf("inbound %s %s %v", v.Inbound.Key, v.Trust.Key, in.dualStack), func(e *encoder) { e.inbound(in) }},
		{"outbound " + v.Outbound.Key, func(e *encoder) { e.outbound(v.Outbound) }},
		{"trust " + v.Trust.Key, func(e *encoder) { e.trust(v.Trust) }},
	}
	if to := v.Outbound.Collector; to != nil {
		halves = slices.Insert(halves, 2, half{"tracing " + to.Key, func(e *encoder) { e.collector(to) }})
	}
	var own []*Part
	for _, p := range halves {
		part, err := c.part(p.key, p.write)
		if err != nil {
			return nil, err
		}
		own = append(own, part)
	}
	return own, nil
}

// part returns the part of that key, encoding it if it is new.
func (c *Cache) part(key string, write func(*encoder)) (*Part, error) {
	return keep(c.parts, key, func() (*Part, error) {
		e := &encoder{part: &Part{Key: key}}
		write(e)
		return e.done()
	})
}

// keep returns what the map holds for a key, and marks it as used. It makes it
// where it is missing.
func keep[T any](m map[string]*kept[T], key string, make func() (T, error)) (T, error) {
	if k, ok := m[key]; ok {
		k.used = true
		return k.value, nil
	}
	value, err := make()
	if err == nil {
		m[key] = &kept[T]{value: value, used: true}
	}
	return value, err
}
