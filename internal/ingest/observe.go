package ingest

import (
	"github.com/outrigger-mesh/outrigger/internal/annotation"
	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

// samples lets a Service say how many requests to a port of a pod are traced. Of
// several Services, the one that wants most has its way.
func (p *pod) samples(port uint16, s *mesh.Sampling) {
	if old := p.sampled[port]; s != nil && (old == nil || *s > *old) {
		p.sampled[port] = s
	}
}

// sampling returns how many requests to a Service port are traced. Requests to the
// collector itself are not: each span would make another.
func (b *builder) sampling(name mesh.PortName, said *mesh.Sampling) *mesh.Sampling {
	if collector, ok := b.opts.Tracing.Service(b.opts.ClusterDomain); ok && collector == name {
		return new(mesh.Sampling)
	}
	return said
}

// logs lets a Service say what calls to a port of a pod are logged. Of several
// Services, the one that wants most has its way.
func (p *pod) logs(port uint16, log mesh.AccessLog) {
	if old, said := p.logged[port]; !said || log.More(old) {
		p.logged[port] = log
	}
}

// ownLog notes what a pod says about what it logs, or else its namespace.
func (b *builder) ownLog(p *pod) {
	log, said, err := annotation.ParseAccessLog(annotation.Pod, p.Annotations)
	if p.log = log; !said {
		p.log = b.logs[p.Namespace]
	}
	if err != nil {
		b.checked(ref("v1", "Pod", p), []error{err})
	}
}

// log returns what holds on a port.
func (b *builder) log(p *pod, port uint16) mesh.AccessLog {
	if log, said := p.logged[port]; said {
		return log
	}
	return p.log
}
