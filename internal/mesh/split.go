package mesh

import (
	"math/big"
	"slices"
)

// A backend is a backend of a Split that a caller may use.
type backend struct {
	name   PortName
	weight uint32
	side   side
}

// backends returns the backends of a split that the apex's port can send a
// caller's traffic to. One that is missing, has no such port, is not authorised,
// or cannot take this traffic is left out, so that its share goes to the others
// in proportion. So is one that nobody serves now; awaited reports whether there is
// such a one.
func (s *Snapshot) backends(split *Split, apex *Service, r reach) (out []backend, awaited bool) {
	for _, share := range split.Backends {
		name := PortName{ServiceName: ServiceName{Namespace: apex.Name.Namespace, Name: share.Service}, Port: apex.Name.Port}
		svc := s.services[name]
		if svc == nil || !Splittable(apex, svc) {
			continue
		}
		side := s.side(svc, r)
		if side.ok {
			out = append(out, backend{name: name, weight: share.Weight, side: side})
		}
		awaited = awaited || side.awaited
	}
	return out, awaited
}

// Splittable reports whether a split can send the traffic of one Service port to
// another: both must speak HTTP, or both must not, and the backend must not be
// headless, because a call to a headless Service goes to the address that the
// caller dialled.
func Splittable(apex, backend *Service) bool {
	if apex.Name == backend.Name {
		return true
	}
	return !backend.passthrough() && !backend.Headless && (apex.Protocol == TCP) == (backend.Protocol == TCP)
}

// applySplit puts a split into the bundle of its apex. Requests are split by
// route. Connections of a TCP port are split by the weights of the endpoints, so
// that no change of weights cuts one; a headless Service's cannot be, nor those
// that a narrowed split does not describe. On a sniffed port only requests are
// split.
func applySplit(b *Bundle, split *Split, backends []backend) {
	if b.Protocol == TCP {
		if !b.Headless && len(split.Matches) == 0 {
			b.Endpoints = weigh(backends)
			b.Pool.LoadBalancer = LoadBalancer{} // which keeps the weights
			b.Identities = identities(b.Identities, backends)
		}
		return
	}
	var shares []Share
	for _, k := range backends {
		shares = append(shares, Share{To: k.name, Weight: k.weight})
	}
	if len(split.Matches) == 0 {
		b.Routes = []Route{{Shares: shares}}
		return
	}
	rest := b.Routes
	b.Routes = nil
	for _, m := range split.Matches {
		b.Routes = append(b.Routes, Route{Match: m, Shares: shares})
	}
	b.Routes = append(b.Routes, rest...)
}

// identities returns those of the apex and of its backends. The apex's stay, so
// that making or taking away a split never refuses a server for a moment.
func identities(own []Identity, backends []backend) []Identity {
	out := slices.Clone(own)
	for _, k := range backends {
		out = append(out, k.side.identities...)
	}
	return set(out, Identity.Compare)
}

// totalWeight is what the weights of a TCP split add up to, before they are
// reduced: endpoints get their share to within 1 in 16 million, and Envoy's
// limit of 2³²−1 for the sum is far.
const totalWeight = 1 << 24

// weigh returns the endpoints of all backends, weighted so that each backend
// gets its share however many endpoints it has. Draining endpoints do not count
// while their backend has others.
func weigh(backends []backend) []Endpoint {
	var sum uint64 // of the backends that have endpoints
	for _, k := range backends {
		if len(k.side.endpoints) > 0 {
			sum += uint64(k.weight)
		}
	}
	var out []Endpoint
	for _, k := range backends {
		if k.weight == 0 {
			continue
		}
		live := filter(k.side.endpoints, func(e Endpoint) bool { return !e.Draining })
		if len(live) == 0 {
			live = k.side.endpoints
		}
		var own uint64
		for _, e := range live {
			own += uint64(max(e.Weight, 1))
		}
		for _, e := range k.side.endpoints {
			if e.Draining && !live[0].Draining {
				e.Weight = 0 // it carries nothing, and must not add to the sum
			} else {
				e.Weight = part(uint64(k.weight), sum, uint64(max(e.Weight, 1)), own)
			}
			out = append(out, e)
		}
	}
	slices.SortFunc(out, Endpoint.compare)
	return reduce(join(out))
}

// part returns totalWeight · weight/sum · e/own, rounded, and at least 1.
func part(weight, sum, e, own uint64) uint32 {
	n := new(big.Int).SetUint64(totalWeight)
	n.Mul(n, new(big.Int).SetUint64(weight)).Mul(n, new(big.Int).SetUint64(e))
	d := new(big.Int).SetUint64(sum)
	d.Mul(d, new(big.Int).SetUint64(own))
	n.Add(n, new(big.Int).Rsh(d, 1)).Div(n, d)
	return uint32(min(max(n.Uint64(), 1), totalWeight))
}

// join adds up the weights of an endpoint that several backends have.
func join(in []Endpoint) []Endpoint {
	var out []Endpoint
	for _, e := range in {
		if n := len(out); n > 0 && out[n-1].Address == e.Address && out[n-1].Port == e.Port {
			out[n-1].Weight += e.Weight
			continue
		}
		out = append(out, e)
	}
	return out
}

// reduce divides the weights by what they have in common, for people to read.
// Envoy takes no weight of zero, so that becomes the least there is.
func reduce(in []Endpoint) []Endpoint {
	var common uint32
	for _, e := range in {
		for a, b := common, e.Weight; ; a, b = b, a%b {
			if b == 0 {
				common = a
				break
			}
		}
	}
	for i := range in {
		in[i].Weight = max(in[i].Weight/max(common, 1), 1)
	}
	return in
}
