package proof

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	specsv1alpha4 "github.com/outrigger-mesh/outrigger/internal/api/specs/v1alpha4"
	splitv1alpha4 "github.com/outrigger-mesh/outrigger/internal/api/split/v1alpha4"
)

// An end is what may become of a call.
type end struct {
	what  verdict
	pod   string // "namespace/name" that served or refused it
	port  int32
	plain bool
}

type verdict string

const (
	served      verdict = "served"
	denied      verdict = "denied"
	unavailable verdict = "unavailable" // it is allowed, and nobody is there
)

func (e end) String() string {
	if e.pod == "" {
		return string(e.what)
	}
	how := "mTLS"
	if e.plain {
		how = "plain text"
	}
	return fmt.Sprintf("%s by %s:%d in %s", e.what, e.pod, e.port, how)
}

// An outcome is every end that a call may come to, with its part of such calls.
type outcome map[end]float64

func only(v verdict) outcome { return outcome{end{what: v}: 1} }

func (o outcome) String() string {
	var out []string
	for e, part := range o {
		out = append(out, fmt.Sprintf("%3.0f %% %s", 100*part, e))
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// has reports whether a call may come to a verdict.
func (o outcome) has(v verdict) bool {
	return slices.ContainsFunc(slices.Collect(maps.Keys(o)), func(e end) bool { return e.what == v })
}

// call says what becomes of a call to a Service by its ClusterIP.
func (p policy) call(from *corev1.Pod, f front, r request) outcome {
	if !p.meshed(from) {
		return p.past(f, r)
	}
	me := p.clientOf(from)
	if !p.inMesh(f.Namespace) {
		return p.leave(me.account, end{what: served, plain: true})
	}
	return p.through(me, f, r, nil)
}

// past is a call without a proxy: Kubernetes sends it to any endpoint.
func (p policy) past(f front, r request) outcome {
	if !p.inMesh(f.Namespace) {
		return outcome{end{what: served, plain: true}: 1}
	}
	out := outcome{}
	all := live(p.endpoints(f))
	for _, e := range all {
		out[p.plain(e.address, e.port, r)] += 1 / float64(len(all))
	}
	if len(all) == 0 {
		return only(served) // no proxy has a part in it
	}
	return out
}

// leave is a call to what is not in the mesh.
func (p policy) leave(me account, e end) outcome {
	if !p.mayLeave(me.namespace) {
		return only(denied)
	}
	return outcome{e: 1}
}

// plain is what answers in plain text at an address.
func (p policy) plain(address string, port int32, r request) end {
	pod := p.podAt(address)
	if pod == nil {
		return end{what: served, port: port, plain: true}
	}
	out := end{what: served, pod: pod.Namespace + "/" + pod.Name, port: port, plain: true}
	if p.meshed(pod) && !p.serves(pod, port, knock{request: r}) {
		out.what = denied
	}
	return out
}

// dial says what becomes of a call to an address that is no ClusterIP.
func (p policy) dial(from *corev1.Pod, address string, port int32, r request) outcome {
	if from.Status.PodIP == address {
		return outcome{end{what: served, pod: from.Namespace + "/" + from.Name, port: port, plain: true}: 1}
	}
	if !p.meshed(from) {
		return outcome{p.plain(address, port, r): 1}
	}
	me := p.clientOf(from)
	// The pods of headless Services are called so; an address of several belongs to
	// the first by name and port.
	headless := slices.DeleteFunc(slices.Clone(p.list), func(f front) bool { return !f.headless() || !p.inMesh(f.Namespace) })
	slices.SortStableFunc(headless, func(a, b front) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name), cmp.Compare(a.port.Port, b.port.Port))
	})
	for _, f := range headless {
		_, endpoints := p.reach(me, f)
		if i := slices.IndexFunc(endpoints, func(e endpoint) bool { return e.address == address && e.port == port }); i >= 0 {
			return p.through(me, f, r, &endpoints[i])
		}
	}
	if me.strict && p.refuses(address) {
		return only(denied)
	}
	return p.leave(me.account, p.plain(address, port, r))
}

// refuses reports whether a Service of the mesh leads to a pod without a proxy at an
// address, which strict callers do not call.
func (p policy) refuses(address string) bool {
	return slices.ContainsFunc(p.list, func(f front) bool {
		return p.inMesh(f.Namespace) && slices.ContainsFunc(p.endpoints(f), func(e endpoint) bool {
			return e.address == address && e.pod != nil && !p.meshed(e.pod)
		})
	})
}

// through is a call that the caller's proxy knows a Service port for. Dialled is the
// endpoint whose address was called, of a headless Service.
func (p policy) through(me client, f front, r request, dialled *endpoint) outcome {
	may, own := p.reach(me, f)
	split := p.split(f)
	var shares []share
	awaited := false
	if split != nil {
		shares, awaited = p.backends(me, split, f)
	}
	if dialled != nil {
		own = []endpoint{*dialled}
	}
	proto := protocol(f.port)
	switch {
	case !may && len(shares) == 0 && !awaited, proto == "http" && r.tcp, proto != "tcp" && !r.tcp && r.seen == "":
		return only(denied)
	case split == nil, proto == "" && r.tcp, proto == "tcp" && (dialled != nil || len(split.Spec.Matches) > 0), proto != "tcp" && !p.isFor(split, r):
		return p.spread(me, may, f, own, r)
	}
	return p.share(me, f, shares, r, dialled)
}

// isFor reports whether a split is for a request.
func (p policy) isFor(s *splitv1alpha4.TrafficSplit, r request) bool {
	narrows := p.narrows(s)
	return len(narrows) == 0 || slices.ContainsFunc(narrows, func(m specsv1alpha4.HTTPMatch) bool { return covers(m, r) })
}

// share shares a call out among the backends of a split, by weight. Connections
// go to backends that have somebody; requests are answered 503 by those that have not.
func (p policy) share(me client, apex front, shares []share, r request, dialled *endpoint) outcome {
	if protocol(apex.port) == "tcp" {
		shares = slices.DeleteFunc(shares, func(s share) bool { return len(s.endpoints) == 0 })
	}
	total := 0
	for _, s := range shares {
		total += s.weight
	}
	if total == 0 {
		return only(unavailable)
	}
	out := outcome{}
	for _, s := range shares {
		if s.weight == 0 {
			continue
		}
		endpoints := s.endpoints
		if dialled != nil && s.Name == apex.Name {
			endpoints = []endpoint{*dialled}
		}
		for e, part := range p.spread(me, true, s.front, endpoints, r) {
			out[e] += part * float64(s.weight) / float64(total)
		}
	}
	return out
}

// spread sends a call to the endpoints of one Service port, and asks each who is
// let in.
func (p policy) spread(me client, may bool, f front, endpoints []endpoint, r request) outcome {
	endpoints = live(endpoints)
	switch {
	case !may && !p.unserved(f):
		return only(denied)
	case len(endpoints) == 0 && slices.ContainsFunc(p.endpoints(f), func(e endpoint) bool {
		return e.pod == nil && p.at(f.Namespace, e.address, e.port).permissive
	}):
		return only(denied) // there is only what somebody wrote down, outside the mesh
	case len(endpoints) == 0:
		return only(unavailable)
	}
	out := outcome{}
	asTCP := protocol(f.port) == "tcp" || protocol(f.port) == "" && r.tcp
	for _, e := range endpoints {
		where := p.plain(e.address, e.port, r)
		if e.pod != nil && p.meshed(e.pod) {
			where.plain, where.what = false, served
			if !p.serves(e.pod, e.port, knock{as: me.account, asTCP: asTCP, request: r}) {
				where.what = denied
			}
		}
		out[where] += 1 / float64(len(endpoints))
	}
	return out
}
