package mesh

import (
	"math"
	"net/netip"
	"testing"
)

func endpoints(k byte, n int) []Endpoint {
	var out []Endpoint
	for i := range n {
		out = append(out, Endpoint{Address: netip.AddrFrom4([4]byte{10, k, byte(i >> 8), byte(i)}), Port: 80})
	}
	return out
}

// TestWeigh checks that the weights of endpoints add up to the shares that were
// written, whatever the numbers of endpoints, and stay within Envoy's limits.
func TestWeigh(t *testing.T) {
	cases := map[string]struct {
		reason  string
		weights []uint32
		counts  []int
		want    []float64 // the share of each backend
	}{
		"UnequalNumbers":   {reason: "a share is the backend's, not the endpoint's", weights: []uint32{75, 25}, counts: []int{3, 1}, want: []float64{.75, .25}},
		"NotAHundred":      {reason: "weights are relative", weights: []uint32{1, 2}, counts: []int{7, 11}, want: []float64{1. / 3, 2. / 3}},
		"Zero":             {reason: "weight zero gets nothing", weights: []uint32{0, 5}, counts: []int{2, 2}, want: []float64{0, 1}},
		"NoEndpoints":      {reason: "a share that cannot be served goes to the others", weights: []uint32{50, 50}, counts: []int{0, 2}, want: []float64{0, 1}},
		"AllZero":          {reason: "nobody gets anything", weights: []uint32{0, 0}, counts: []int{1, 1}, want: []float64{0, 0}},
		"LargeWeights":     {reason: "the largest weights must not overflow", weights: []uint32{math.MaxUint32, math.MaxUint32}, counts: []int{1, 300}, want: []float64{.5, .5}},
		"ManyEndpoints":    {reason: "a thousand endpoints still get their share", weights: []uint32{1, 99}, counts: []int{1000, 1}, want: []float64{.01, .99}},
		"OneInAMillion":    {reason: "small shares survive", weights: []uint32{1, 999_999}, counts: []int{1, 1}, want: []float64{1e-6, 1 - 1e-6}},
		"NothingAtAll":     {reason: "a split without backends has no endpoints"},
		"OneBackend":       {reason: "all of it", weights: []uint32{3}, counts: []int{5}, want: []float64{1}},
		"ThreeWithAThird":  {reason: "thirds are no round numbers", weights: []uint32{1, 1, 1}, counts: []int{1, 2, 3}, want: []float64{1. / 3, 1. / 3, 1. / 3}},
		"ZeroAndNoOneElse": {reason: "only weight zero is left", weights: []uint32{0, 5}, counts: []int{2, 0}, want: []float64{0, 0}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			var in []backend
			for i, w := range c.weights {
				in = append(in, backend{weight: w, side: side{ok: true, endpoints: endpoints(byte(i), c.counts[i])}})
			}
			var total uint64
			got := make([]uint64, len(c.weights))
			for _, e := range weigh(in) {
				if e.Weight == 0 {
					t.Errorf("%s: endpoint %s has no weight, which counts as one", c.reason, e.Address)
				}
				got[e.Address.As4()[1]] += uint64(e.Weight)
				total += uint64(e.Weight)
			}
			if total > math.MaxUint32 {
				t.Errorf("%s: the weights add up to %d, which Envoy refuses", c.reason, total)
			}
			for i, want := range c.want {
				if share := float64(got[i]) / float64(max(total, 1)); math.Abs(share-want) > 1e-4 {
					t.Errorf("%s: backend %d gets %f of the calls, not %f", c.reason, i, share, want)
				}
			}
		})
	}
}

func TestWeighAddsUpSharedEndpoints(t *testing.T) {
	one := endpoints(1, 1)
	got := weigh([]backend{{weight: 1, side: side{endpoints: one}}, {weight: 1, side: side{endpoints: append(endpoints(2, 1), one...)}}})
	if len(got) != 2 || got[0].Weight != 3*got[1].Weight {
		t.Errorf("a pod of both backends, of which one has another pod, gets %v", got)
	}
}

// TestWeighDraining holds that endpoints on their way out, however many, do not
// add to a sum that Envoy limits.
func TestWeighDraining(t *testing.T) {
	many := endpoints(0, 400)
	for i := range many[1:] {
		many[i+1].Draining = true
	}
	var total, live uint64
	for _, e := range weigh([]backend{{weight: 50, side: side{ok: true, endpoints: many}}, {weight: 50, side: side{ok: true, endpoints: endpoints(1, 3)}}}) {
		total += uint64(e.Weight)
		if !e.Draining {
			live += uint64(e.Weight)
		}
	}
	if total > math.MaxUint32 || float64(total-live)/float64(total) > 1e-4 {
		t.Errorf("the weights add up to %d, %d of them of endpoints that carry something", total, live)
	}
}
