package limit

import (
	"testing"

	"golang.org/x/time/rate"
)

const never = rate.Limit(1e-9)

func TestEachKeyHasItsOwn(t *testing.T) {
	var l Keys[string]
	for _, step := range []struct {
		key  string
		want bool
	}{{"a", true}, {"a", true}, {"a", false}, {"b", true}, {"a", false}, {"b", true}, {"b", false}} {
		if got := l.Allow(step.key, never, 2); got != step.want {
			t.Errorf("%s: got %t, want %t", step.key, got, step.want)
		}
	}
}

func TestMemoryIsBounded(t *testing.T) {
	var l Keys[int]
	for key := range most {
		if !l.Allow(key, never, 1) {
			t.Fatalf("key %d is refused", key)
		}
	}
	if l.Allow(most, never, 1) || len(l.limiters) != most {
		t.Errorf("one more key is let in; %d are remembered", len(l.limiters))
	}
	if l.Allow(0, never, 1) {
		t.Error("a flood of others has given a key a new start")
	}

	var idle Keys[int]
	for key := range most + 1 {
		if !idle.Allow(key, rate.Inf, 1) {
			t.Fatalf("key %d is refused although the others may be forgotten", key)
		}
	}
}
