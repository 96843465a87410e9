package mesh

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Tracing says where the proxies of the mesh send their spans, and of how many
// requests.
type Tracing struct {
	// Host and Port are those of a collector that takes OTLP over gRPC.
	Host string `json:"host"`
	Port uint16 `json:"port"`
	// Sampling holds where neither a namespace nor a Service says otherwise.
	Sampling Sampling `json:"sampling"`
}

// A Sampling is how many of ten thousand requests are traced: hundredths of a
// percent, of which Envoy knows no parts.
type Sampling uint32

// Always is the Sampling of every request.
const Always Sampling = 10_000

func (t *Tracing) fault() error {
	switch {
	case t == nil:
		return nil
	case t.Host == "" || t.Port == 0:
		return errors.New("the collector's host or port is missing")
	case t.Sampling > Always:
		return fmt.Errorf("sampling %d is more than every request", t.Sampling)
	}
	return nil
}

// Service returns the Service port that Host and Port name, if Host is written as
// name.namespace, name.namespace.svc or with the cluster's domain. Whether there is
// such a one, and whether its namespace is in the mesh, is another question.
func (t *Tracing) Service(clusterDomain string) (PortName, bool) {
	if t == nil {
		return PortName{}, false
	}
	name, rest, _ := strings.Cut(strings.TrimSuffix(t.Host, "."), ".")
	ns, tail, _ := strings.Cut(rest, ".")
	if name == "" || ns == "" || tail != "" && tail != "svc" && tail != "svc."+clusterDomain {
		return PortName{}, false
	}
	return PortName{ServiceName: ServiceName{Namespace: ns, Name: name}, Port: t.Port}, true
}

// A Collector is where a proxy's own spans go. Where it has neither a Bundle nor a
// Host, they go nowhere.
type Collector struct {
	Key string `json:"key"`
	// Bundle is a collector in the mesh, as the proxy may call it.
	Bundle *Bundle `json:"bundle,omitempty"`
	// Host and Port are those of a collector outside the mesh, for plain text.
	Host string `json:"host,omitempty"`
	Port uint16 `json:"port,omitempty"`
}

// collector returns where the spans of a proxy with these bundles go, or nil if
// nothing is traced. A collector in the mesh's namespaces is called as policy has
// it, and never in plain text because it is not there or may not be called.
func (s *Snapshot) collector(bundles []*Bundle) *Collector {
	t := s.parts.Settings.Tracing
	if t == nil {
		return nil
	}
	c := &Collector{}
	name, isService := t.Service(s.parts.Settings.ClusterDomain)
	if _, inMesh := s.namespaces[name.Namespace]; isService && inMesh {
		i, found := slices.BinarySearchFunc(bundles, name, func(b *Bundle, name PortName) int { return b.Name.Compare(name) })
		if found && !bundles[i].Passthrough {
			c.Bundle = bundles[i]
		}
	} else {
		c.Host, c.Port = t.Host, t.Port
	}
	c.Key = digest(c)
	return c
}

// sampling returns how many requests are traced where a Service or a port says
// something, or nothing. Without a collector none are.
func (s *Snapshot) sampling(said *Sampling) Sampling {
	switch t := s.parts.Settings.Tracing; {
	case t == nil:
		return 0
	case said != nil:
		return *said
	default:
		return t.Sampling
	}
}

// traced reports whether the proxies of the mesh have a collector.
func (s *Snapshot) traced() bool { return s.parts.Settings.Tracing != nil }
