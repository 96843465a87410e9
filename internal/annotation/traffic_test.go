package annotation

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

func TestParseTraffic(t *testing.T) {
	namespace := mesh.Traffic{
		Timeout: 10 * time.Second, Retry: mesh.Retry{On: []string{"5xx"}, Attempts: 2},
		Pool: mesh.Pool{MaxRequests: 100, LoadBalancer: mesh.LoadBalancer{Policy: mesh.RingHash, Header: "x-user"}},
	}
	with := func(change func(*mesh.Traffic)) mesh.Traffic {
		tr := namespace
		change(&tr)
		return tr
	}
	cases := map[string]struct {
		reason      string
		annotations map[string]string
		want        mesh.Traffic
		faults      int
	}{
		"Nothing":    {reason: "what the namespace says holds", want: namespace},
		"Overridden": {reason: "each key alone", annotations: map[string]string{Timeout: "1.5s"}, want: with(func(tr *mesh.Traffic) { tr.Timeout = 1500 * time.Millisecond })},
		"Zero":       {reason: "zero takes the namespace's away", annotations: map[string]string{Timeout: "0", MaxRequests: "0"}, want: with(func(tr *mesh.Traffic) { tr.Timeout, tr.Pool.MaxRequests = 0, 0 })},
		"EmptyList":  {reason: "so does a list of nothing", annotations: map[string]string{RetryOn: ""}, want: with(func(tr *mesh.Traffic) { tr.Retry.On = nil })},
		"All": {
			reason: "every key has its field",
			annotations: map[string]string{
				Timeout: "1s", IdleTimeout: "5m", RetryOn: "unavailable, 503,5XX,503", RetryAttempts: "5", RetryPerTryTimeout: "300ms", MaxConnections: "7", MaxRequests: "8",
				OutlierErrors: "3", OutlierInterval: "1s", OutlierEjectionTime: "1m", LoadBalancer: "Random",
			},
			want: mesh.Traffic{
				Timeout: time.Second, IdleTimeout: 5 * time.Minute,
				Retry: mesh.Retry{On: []string{"503", "5xx", "unavailable"}, Attempts: 5, PerTryTimeout: 300 * time.Millisecond},
				Pool: mesh.Pool{
					MaxConnections: 7, MaxRequests: 8, Outlier: mesh.Outlier{ConsecutiveErrors: 3, Interval: time.Second, EjectionTime: time.Minute},
					LoadBalancer: mesh.LoadBalancer{Policy: mesh.Random},
				},
			},
		},
		"Host": {reason: "a condition on the host is on what stands for it", annotations: map[string]string{LoadBalancer: "ring-hash:Host"}, want: with(func(tr *mesh.Traffic) { tr.Pool.LoadBalancer.Header = ":authority" })},
		"Bad": {
			reason: "what is not allowed changes nothing", want: namespace, faults: 11,
			annotations: map[string]string{
				Timeout: "5", IdleTimeout: "-1s", RetryOn: "5xx,retriable-status-codes", RetryAttempts: "0", RetryPerTryTimeout: "1500us", MaxConnections: "-1", MaxRequests: "4294967296",
				OutlierErrors: "many", OutlierInterval: "0s", OutlierEjectionTime: "", LoadBalancer: "ring-hash",
			},
		},
		"NotQuite": {
			reason: "nor does what is nearly allowed", want: namespace, faults: 4,
			annotations: map[string]string{Timeout: "0.5ms", RetryOn: "399", RetryAttempts: "26", LoadBalancer: "round-robin:x"},
		},
		"BadHeader": {reason: "a header has a name", annotations: map[string]string{LoadBalancer: "ring-hash::method"}, want: namespace, faults: 1},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, ParseTraffic(c.annotations, namespace)); diff != "" {
				t.Errorf("%s (-want +got):\n%s", c.reason, diff)
			}
			for on, errs := range map[string][]error{"namespace": CheckNamespace(c.annotations), "service": CheckService(c.annotations)} {
				if len(errs) != c.faults {
					t.Errorf("%s: on a %s: %d errors, want %d: %v", c.reason, on, len(errs), c.faults, errs)
				}
			}
		})
	}
	if errs := CheckPod(map[string]string{Timeout: "1s"}); len(errs) != 1 || errs[0].Error() != "pod annotation outrigger.dev/timeout has no effect on a pod; use it on a namespace or a service" {
		t.Errorf("on a pod: %v", errs)
	}
}

// FuzzParseTraffic holds that what the check lets pass is taken, that what it does
// not changes nothing, and that all that is taken is within what Envoy takes.
func FuzzParseTraffic(f *testing.F) {
	for _, k := range trafficSubject().keys {
		for _, value := range []string{"1.5s", "3", "5xx,503", "ring-hash:x-user", "random", ""} {
			f.Add(k.Name, value)
		}
	}
	f.Fuzz(func(t *testing.T, key, value string) {
		annotations := map[string]string{key: value}
		tr := ParseTraffic(annotations, mesh.Traffic{})
		if len(CheckService(annotations)) > 0 && !cmp.Equal(tr, mesh.Traffic{}) {
			t.Errorf("%s=%q is not allowed, and means %+v", key, value, tr)
		}
		for _, d := range []time.Duration{tr.Timeout, tr.IdleTimeout, tr.Retry.PerTryTimeout, tr.Pool.Outlier.Interval, tr.Pool.Outlier.EjectionTime} {
			if d < 0 || d%time.Millisecond != 0 {
				t.Errorf("%s=%q: %s", key, value, d)
			}
		}
		if b := tr.Pool.LoadBalancer; (b.Policy == mesh.RingHash) != (b.Header != "") {
			t.Errorf("%s=%q: %+v", key, value, b)
		}
	})
}
