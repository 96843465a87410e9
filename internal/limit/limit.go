// Package limit bounds how often each of many callers may do something, and how many
// of them at the same time.
//
// It remembers callers, so it bounds its own memory too: who has not asked for
// long is forgotten, and when so many ask that none can be, new ones are refused.
// It knows no clock but the real one, and not what is limited.
package limit

import (
	"sync"

	"golang.org/x/time/rate"
)

// most is how many callers are remembered at once. More are an attack.
const most = 10_000

// Keys limits each key by itself. The zero Keys is ready, and safe for concurrent
// use; it must not be copied.
type Keys[K comparable] struct {
	mu       sync.Mutex
	limiters map[K]*rate.Limiter
}

// Allow reports whether a key may do it once more, at a rate that begins with a
// burst. All calls of one Keys have the same rate and burst.
func (l *Keys[K]) Allow(key K, r rate.Limit, burst int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	limiter, ok := l.limiters[key]
	if !ok {
		if len(l.limiters) >= most {
			l.sweep(burst)
		}
		if len(l.limiters) >= most {
			return false
		}
		if l.limiters == nil {
			l.limiters = map[K]*rate.Limiter{}
		}
		limiter = rate.NewLimiter(r, burst)
		l.limiters[key] = limiter
	}
	return limiter.Allow()
}

// sweep forgets keys that have not asked for so long that they start anew.
func (l *Keys[K]) sweep(burst int) {
	for key, limiter := range l.limiters {
		if limiter.Tokens() >= float64(burst) {
			delete(l.limiters, key)
		}
	}
}
