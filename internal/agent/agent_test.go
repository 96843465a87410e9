package agent

import (
	"testing"
	"time"
)

func TestRenewal(t *testing.T) {
	for range 1000 {
		if got := renewal(24 * time.Hour); got < 10*time.Hour || got > 14*time.Hour {
			t.Fatalf("a certificate of 24 hours is renewed after %s; want about 12 hours", got)
		}
		if got := renewal(-time.Hour); got != soonest {
			t.Fatalf("a certificate that has ended is renewed after %s; want %s, and no faster", got, soonest)
		}
	}
}

func TestBackoff(t *testing.T) {
	for failures := 1; failures < 100; failures++ {
		got := backoff(failures)
		if got < firstRetry/2 || got > lastRetry*3/2 {
			t.Fatalf("after %d failures: got %s", failures, got)
		}
		if failures > 10 && got < lastRetry/2 {
			t.Fatalf("after %d failures: got %s; want about %s", failures, got, lastRetry)
		}
	}
}

func TestDeadline(t *testing.T) {
	start := time.Unix(1000, 0)
	for seconds, want := range map[int64]time.Duration{30: 27 * time.Second, 4: 3 * time.Second, 1: 750 * time.Millisecond, 3600: 3597 * time.Second} {
		if got := deadline(start, seconds).Sub(start); got != want {
			t.Errorf("of %d seconds %s are for callers; want %s", seconds, got, want)
		}
	}
}

func TestIdleness(t *testing.T) {
	start := time.Unix(1000, 0)
	type step struct {
		after time.Duration
		seen  activity
		want  bool
	}
	tests := map[string]struct {
		reason string
		steps  []step
	}{
		"a job":        {"nobody ever came, so nobody will be missed", []step{{0, activity{}, true}}},
		"quiet":        {"who was called before may be called until callers have heard", []step{{0, activity{0, 5}, false}, {quiet / 2, activity{0, 5}, false}, {quiet, activity{0, 5}, true}}},
		"busy":         {"somebody is being served", []step{{0, activity{1, 5}, false}, {2 * quiet, activity{1, 5}, false}, {5 * quiet / 2, activity{0, 5}, false}, {3 * quiet, activity{0, 5}, true}}},
		"latecomers":   {"callers that come and go between two looks count", []step{{0, activity{0, 5}, false}, {quiet, activity{0, 6}, false}, {2 * quiet, activity{0, 6}, true}}},
		"first caller": {"the first call may come late", []step{{quiet, activity{1, 1}, false}}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			i := idleness{busy: start}
			for n, s := range test.steps {
				if got := i.since(s.seen, start.Add(s.after)); got != s.want {
					t.Errorf("%s: step %d: got %v; want %v", test.reason, n, got, s.want)
				}
			}
		})
	}
}
