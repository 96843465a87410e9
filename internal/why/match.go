package why

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

// asked is a request as a proxy compares it.
type asked struct {
	method string
	path   string
	// headers by lower-case name, ":authority" among them; several of one name are
	// joined with commas, as Envoy does.
	headers map[string]string
}

// A miss is a condition that a request does not meet, as a sentence's end: "it is
// for GET, not POST". Far is how much it would take to meet it: a header is
// something to send, another path is another request.
type miss struct {
	text string
	far  int
}

const (
	farHeader = 1
	farMethod = 4
	farPath   = 8
)

// misses returns which conditions of m the request does not meet. None means that
// m covers it.
func misses(m mesh.HTTPMatch, r asked) []miss {
	var out []miss
	add := func(far int, format string, args ...any) { out = append(out, miss{fmt.Sprintf(format, args...), far}) }
	if !matchesPath(m.Path, r.path) {
		add(farPath, "it is for the path %s, not %s", m.Path.Value, r.path)
	}
	if len(m.Methods) > 0 && !slices.Contains(m.Methods, r.method) {
		add(farMethod, "it is for %s, not %s", strings.Join(m.Methods, ", "), r.method)
	}
	for _, h := range m.Headers {
		name := h.Name
		if name == ":authority" {
			name = "host"
		}
		value, sent := r.headers[h.Name]
		switch {
		case !sent:
			add(farHeader, "it wants the header %s: %s", name, h.Value.Value)
		case !matches(h.Value, value):
			add(farHeader, "it wants the header %s: %s, not %q", name, h.Value.Value, value)
		}
	}
	return out
}

// matchesPath compares a path; its prefixes are of whole segments.
func matchesPath(m mesh.StringMatch, path string) bool {
	if m.Kind != mesh.Prefix {
		return matches(m, path)
	}
	prefix := strings.TrimSuffix(m.Value, "/")
	return path == prefix || strings.HasPrefix(path, prefix+"/")
}

func matches(m mesh.StringMatch, value string) bool {
	switch m.Kind {
	case mesh.Any:
		return true
	case mesh.Exact:
		return m.Value == value
	case mesh.Prefix:
		return strings.HasPrefix(value, m.Value)
	default:
		// Envoy has RE2 match the whole value. A faulty expression matches nothing;
		// ingest lets none through.
		re, err := regexp.Compile(`\A(?:` + m.Value + `)\z`)
		return err == nil && re.MatchString(value)
	}
}

// describe says which requests a match covers: "GET /books-bought".
func describe(m mesh.HTTPMatch) string {
	parts := []string{"any method"}
	if len(m.Methods) > 0 {
		parts[0] = strings.Join(m.Methods, ",")
	}
	switch m.Path.Kind {
	case mesh.Any:
		parts = append(parts, "any path")
	case mesh.Prefix:
		parts = append(parts, m.Path.Value+" and below")
	default:
		parts = append(parts, m.Path.Value)
	}
	for i, h := range m.Headers {
		word := "with header"
		if i > 0 {
			word = "and"
		}
		parts = append(parts, word, strings.Replace(h.Name, ":authority", "host", 1))
	}
	return strings.Join(parts, " ")
}
