package annotation

import (
	"strconv"
	"strings"
)

// A Demand is what an object says about mutual TLS. The zero Demand is nothing.
type Demand string

// The demands.
const (
	DemandNothing Demand = ""
	Strict        Demand = "strict"
	Lenient       Demand = "permissive" // plain text too
)

// NamespaceMTLS returns what a namespace says by [MTLS]. With the error it returns
// Strict, which then holds.
func NamespaceMTLS(annotations map[string]string) (Demand, error) {
	return demand(Namespace, annotations)
}

// PodMTLS does for a pod what [NamespaceMTLS] does for a namespace.
func PodMTLS(annotations map[string]string) (Demand, error) { return demand(Pod, annotations) }

func demand(on Place, annotations map[string]string) (Demand, error) {
	value, said := annotations[MTLS]
	if !said {
		return DemandNothing, nil
	}
	d, ok := parseDemand(value)
	if !ok {
		return Strict, policyError(on, MTLS, value, allowedMTLS)
	}
	return d, nil
}

func parseDemand(word string) (Demand, bool) {
	switch d := Demand(strings.ToLower(word)); d {
	case Strict, Lenient:
		return d, true
	default:
		return Strict, false
	}
}

// A ServiceDemand is what a Service says about mutual TLS: for all its ports, and
// for some.
type ServiceDemand struct {
	All   Demand
	Ports map[uint16]Demand // by the Service's own port numbers
}

// Of returns what holds for a port of the Service.
func (d ServiceDemand) Of(port uint16) Demand {
	if own, ok := d.Ports[port]; ok {
		return own
	}
	return d.All
}

// ServiceMTLS returns what a Service says by [MTLS]: a word, entries PORT=word, or
// both. With the error it returns Strict for all ports, which then holds.
func ServiceMTLS(annotations map[string]string) (ServiceDemand, error) {
	value, said := annotations[MTLS]
	if !said {
		return ServiceDemand{}, nil
	}
	refused := func() (ServiceDemand, error) {
		return ServiceDemand{All: Strict}, policyError(Service, MTLS, value, allowedServiceMTLS)
	}
	var out ServiceDemand
	for entry := range strings.SplitSeq(value, ",") {
		number, word, ofPort := strings.Cut(strings.TrimSpace(entry), "=")
		if !ofPort {
			word = number
		}
		d, ok := parseDemand(strings.TrimSpace(word))
		switch {
		case !ok || !ofPort && out.All != DemandNothing:
			return refused()
		case !ofPort:
			out.All = d
			continue
		}
		port, err := strconv.ParseUint(strings.TrimSpace(number), 10, 16)
		if _, twice := out.Ports[uint16(port)]; err != nil || port == 0 || twice {
			return refused()
		}
		if out.Ports == nil {
			out.Ports = map[uint16]Demand{}
		}
		out.Ports[uint16(port)] = d
	}
	return out, nil
}
