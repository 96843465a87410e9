package ingest

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/outrigger-mesh/outrigger/internal/annotation"
	specsv1alpha4 "github.com/outrigger-mesh/outrigger/internal/api/specs/v1alpha4"
	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

type routeName struct{ namespace, name string }

// A group is an HTTPRouteGroup: its usable matches by name.
type group map[string][]mesh.HTTPMatch

// A tcpRoute is a TCPRoute: its usable ports, or that it means the port of the
// TrafficTarget's destination.
type tcpRoute struct {
	ports         []uint16
	ofDestination bool
}

// routes reads the HTTPRouteGroups and TCPRoutes of the mesh's namespaces.
func (b *builder) routes() {
	patterns, api := patterns{}, specsv1alpha4.GroupVersion().String()
	b.groups = make(map[routeName]group, len(b.objs.HTTPRouteGroups))
	for _, o := range b.objs.HTTPRouteGroups {
		if !b.member(o.Namespace) {
			continue
		}
		g := group{}
		for i := range o.Spec.Matches {
			m := &o.Spec.Matches[i]
			match, err := patterns.httpMatch(m)
			if err != nil {
				b.found.add(ref(api, "HTTPRouteGroup", o), BadMatch, "match %q is left out: %v", m.Name, err)
				continue
			}
			g[m.Name] = append(g[m.Name], match)
		}
		b.groups[routeName{o.Namespace, o.Name}] = g
	}
	b.tcpRoutes = make(map[routeName]tcpRoute, len(b.objs.TCPRoutes))
	for _, o := range b.objs.TCPRoutes {
		if !b.member(o.Namespace) {
			continue
		}
		of, err := annotation.PortsOfDestination(o.Annotations)
		if err != nil {
			b.found.add(ref(api, "TCPRoute", o), BadAnnotation, "%v; it opens only the ports that it lists", err)
		}
		r := tcpRoute{ofDestination: of && len(o.Spec.Matches.Ports) == 0}
		for _, p := range o.Spec.Matches.Ports {
			n, ok := p.Value()
			if !ok || n < 1 || n > math.MaxUint16 {
				b.found.add(ref(api, "TCPRoute", o), BadPort, "port %s is left out: ports are from 1 to 65535", p)
				continue
			}
			r.ports = append(r.ports, uint16(n))
		}
		b.tcpRoutes[routeName{o.Namespace, o.Name}] = r
	}
}

// patterns remembers which regular expressions are faulty: many routes share a
// few.
type patterns map[string]error

// httpMatch says in the model's words which requests m describes.
func (p patterns) httpMatch(m *specsv1alpha4.HTTPMatch) (mesh.HTTPMatch, error) {
	var out mesh.HTTPMatch
	if m.PathRegex != "" && m.PathRegex != ".*" {
		if err := p.check(m.PathRegex); err != nil {
			return mesh.HTTPMatch{}, fmt.Errorf("pathRegex %q: %w", m.PathRegex, err)
		}
		out.Path = mesh.StringMatch{Kind: mesh.Regex, Value: m.PathRegex}
	}
	if !slices.Contains(m.Methods, "*") {
		out.Methods = slices.Clone(m.Methods)
	}
	for _, headers := range m.Headers {
		for name, value := range headers {
			h, err := p.header(name, value)
			if err != nil {
				return mesh.HTTPMatch{}, err
			}
			out.Headers = append(out.Headers, h)
		}
	}
	return out, nil
}

func (p patterns) header(name, value string) (mesh.HeaderMatch, error) {
	lower := strings.ToLower(name)
	if !headerName(lower) {
		return mesh.HeaderMatch{}, fmt.Errorf("header %q: this is not the name of a header", name)
	}
	if lower == "host" {
		lower = ":authority"
	}
	if err := p.check(value); err != nil {
		return mesh.HeaderMatch{}, fmt.Errorf("header %q: %q: %w", name, value, err)
	}
	return mesh.HeaderMatch{Name: lower, Value: mesh.StringMatch{Kind: mesh.Regex, Value: value}}, nil
}

// headerName reports whether s is a token of HTTP in lower case. Names that begin
// with a colon are none: they would reach into method and path.
func headerName(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && !strings.ContainsRune("!#$%&'*+-.^_`|~", r)
	})
}

// maxPattern bounds regular expressions: longer ones are mistakes or attacks.
const maxPattern = 1024

// check reports why a regular expression cannot be used.
func (p patterns) check(pattern string) error {
	err, known := p[pattern]
	if known {
		return err
	}
	switch {
	case len(pattern) > maxPattern:
		err = fmt.Errorf("a regular expression of %d bytes; at most %d are allowed", len(pattern), maxPattern)
	case !utf8.ValidString(pattern):
		err = fmt.Errorf("not valid UTF-8")
	default:
		err = mesh.CheckRegex(pattern)
	}
	p[pattern] = err
	return err
}
