package mesh

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// faults returns what is wrong with p, which is canonical. Ingest makes none of
// these; they are what the rest of this package relies on.
func faults(p Parts) []error {
	var errs []error
	fault := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if p.Settings.TrustDomain == "" {
		fault("the trust domain is empty")
	}
	accepted := map[string]bool{p.Settings.TrustDomain: true}
	for _, d := range p.Settings.AlsoTrusted {
		switch {
		case d.Name == "":
			fault("the name of a trust domain that is also accepted is empty")
		case accepted[d.Name]:
			fault("trust domain %s is listed twice", d.Name)
		}
		accepted[d.Name] = true
	}
	if err := p.Settings.Tracing.fault(); err != nil {
		fault("tracing: %w", err)
	}
	inMesh := map[string]bool{}
	for _, n := range p.Namespaces {
		if inMesh[n.Name] {
			fault("namespace %s is listed twice", n.Name)
		}
		inMesh[n.Name] = true
	}
	for i, w := range p.Workloads {
		if i > 0 && w.ID == p.Workloads[i-1].ID {
			fault("workload %s is listed twice", w.ID)
		}
		if err := w.fault(inMesh); err != nil {
			fault("workload %s: %w", w.ID, err)
		}
	}
	for i, s := range p.Services {
		if i > 0 && s.Name == p.Services[i-1].Name {
			fault("service %s is listed twice", s.Name)
		}
		if err := s.fault(inMesh); err != nil {
			fault("service %s: %w", s.Name, err)
		}
	}
	for _, g := range p.Grants {
		if err := g.fault(); err != nil {
			fault("grant of %s: %w", g.Source, err)
		}
	}
	for i, s := range p.Splits {
		if i > 0 && s.Apex == p.Splits[i-1].Apex {
			fault("split of %s: %s has another split", s.Source, s.Apex)
		}
		if err := matchesFault(s.Matches); err != nil {
			fault("split of %s: %w", s.Source, err)
		}
	}
	return errs
}

func (w Workload) fault(inMesh map[string]bool) error {
	switch {
	case !inMesh[w.ID.Namespace]:
		return fmt.Errorf("namespace %s is not in the mesh", w.ID.Namespace)
	case w.Identity.Namespace != w.ID.Namespace || w.Identity.ServiceAccount == "":
		return fmt.Errorf("identity %s is not one of its namespace", w.Identity)
	}
	for i, p := range w.Ports {
		if p.Port == 0 || i > 0 && p.Port == w.Ports[i-1].Port {
			return fmt.Errorf("port %d is zero or listed twice", p.Port)
		}
		if err := p.Policy.fault(); err != nil {
			return fmt.Errorf("port %d: %w", p.Port, err)
		}
	}
	return nil
}

// fault returns what is wrong with p, which may be nil.
func (p *PortPolicy) fault() error {
	if p == nil {
		return nil
	}
	for _, g := range p.Grants {
		switch {
		case slices.ContainsFunc(g.Callers, Identity.IsZero):
			return fmt.Errorf("grant of %s: it names nobody as a caller", g.Source)
		case slices.ContainsFunc(g.Groups, func(g Group) bool { return g == "" || strings.Contains(string(g), "/") }):
			return fmt.Errorf("grant of %s: a group is the name of a namespace, or everyone", g.Source)
		}
	}
	return nil
}

func (svc Service) fault(inMesh map[string]bool) error {
	switch {
	case svc.Name.Port == 0:
		return errors.New("the port is zero")
	case svc.InMesh && !inMesh[svc.Name.Namespace]:
		return fmt.Errorf("namespace %s is not in the mesh", svc.Name.Namespace)
	}
	for _, id := range svc.Identities {
		// Anything else would let another namespace answer in its name.
		if id.Namespace != svc.Name.Namespace || id.ServiceAccount == "" {
			return fmt.Errorf("identity %s is not one of its namespace", id)
		}
	}
	if err := svc.Policy.fault(); err != nil {
		return err
	}
	for _, t := range svc.Targets {
		if err := t.Policy.fault(); err != nil {
			return fmt.Errorf("target %s:%d: %w", t.Identity, t.Port, err)
		}
		if t.Port == 0 || !slices.Contains(svc.Identities, t.Identity) {
			return fmt.Errorf("target %s:%d is no port of the service", t.Identity, t.Port)
		}
	}
	for i, e := range svc.Endpoints {
		if err := e.Policy.fault(); err != nil {
			return fmt.Errorf("endpoint %s:%d: %w", e.Address, e.Port, err)
		}
		switch {
		case !e.Address.IsValid() || e.Port == 0:
			return fmt.Errorf("endpoint %s:%d is incomplete", e.Address, e.Port)
		case i > 0 && e.Address == svc.Endpoints[i-1].Address && e.Port == svc.Endpoints[i-1].Port:
			return fmt.Errorf("endpoint %s:%d is listed twice", e.Address, e.Port)
		case !e.Identity.IsZero() && !slices.Contains(svc.Identities, e.Identity):
			return fmt.Errorf("endpoint %s:%d has the identity %s, which the service has not", e.Address, e.Port, e.Identity)
		}
	}
	return nil
}

func (g Grant) fault() error {
	switch {
	case g.Server.IsZero():
		return errors.New("it names no server")
	case len(g.Callers) == 0 || slices.ContainsFunc(g.Callers, Identity.IsZero):
		return errors.New("it names no caller, or nobody as one")
	}
	return matchesFault(g.HTTP)
}

func matchesFault(matches []HTTPMatch) error {
	for _, m := range matches {
		values := []StringMatch{m.Path}
		for _, h := range m.Headers {
			if h.Name == "" {
				return errors.New("a header without a name")
			}
			values = append(values, h.Value)
		}
		for _, v := range values {
			if v.Kind.rank() < 0 {
				return fmt.Errorf("unknown kind of match %q", v.Kind)
			}
		}
	}
	return nil
}
