package mesh

import "sync"

// A memo keeps what was made for each key, and makes it once. The zero memo is
// ready to use.
type memo[K comparable, V any] struct {
	mu    sync.Mutex
	makes map[K]func() V
}

// get returns the value of k, made by the first caller while others of the same
// key wait.
func (m *memo[K, V]) get(k K, make func() V) V {
	m.mu.Lock()
	f, ok := m.makes[k]
	if !ok {
		f = sync.OnceValue(make)
		if m.makes == nil {
			m.makes = map[K]func() V{}
		}
		m.makes[k] = f
	}
	m.mu.Unlock()
	return f()
}
