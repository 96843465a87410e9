package ingest

import "github.com/outrigger-mesh/outrigger/internal/mesh"

// logs lets a Service say what calls to a port of a pod are logged. Of several
// Services, the one that wants most has its way.
func (p *pod) logs(port uint16, log mesh.AccessLog) {
	if old, said := p.logged[port]; !said || log.More(old) {
		p.logged[port] = log
	}
}

// log returns what holds on a port.
func (b *builder) log(p *pod, port uint16) mesh.AccessLog {
	if log, said := p.logged[port]; said {
		return log
	}
	return b.inMesh[p.Namespace].AccessLog
}
