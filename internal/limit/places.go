package limit

import "sync"

// Places bounds how many are in at the same time: of each key, and in all. The zero
// Places is ready, and safe for concurrent use; it must not be copied.
type Places[K comparable] struct {
	mu  sync.Mutex
	in  map[K]int
	all int
}

// Take takes a place for a key and reports true, or reports that there is none: of
// each key so many may be in and, unless most is zero, so many in all. All calls of
// one Places have the same bounds.
func (p *Places[K]) Take(key K, each, most int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.in[key] >= each || most > 0 && p.all >= most {
		return false
	}
	if p.in == nil {
		p.in = map[K]int{}
	}
	p.in[key]++
	p.all++
	return true
}

// Leave gives back a place that was taken for a key.
func (p *Places[K]) Leave(key K) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all--
	if p.in[key]--; p.in[key] == 0 {
		delete(p.in, key)
	}
}
