package xds_test

import (
	"strings"
	"testing"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
	"github.com/outrigger-mesh/outrigger/internal/xds"
	"github.com/outrigger-mesh/outrigger/internal/xds/envoytest"
)

// Envoy must take every regular expression that the model admits: a refused one
// would keep a whole port at its old policy.
func TestEnvoyTakesRegexes(t *testing.T) {
	t.Parallel()
	expressions := []string{
		"/books/[^/]+", "/" + strings.Repeat("a", 900), strings.Repeat("(", 500) + strings.Repeat(")", 500),
		`/[0-9a-f]{8}(-[0-9a-f]{4}){3}.*`, `\x{ff}\x{0ff}\xff\pL\p{Kawi}\PN`, `(?i:a)(?P<n>b)(?<m>c)\Qc.d\E(?U)x+(?s).\z`, `[[:^word:]]`,
		`\w{1000}\w{900}`, `[acegikmoqsuwy]{700}`, `((a{100}){10})`, `(\pL|\pN){10}`, `.{1000}.{1000}.{1000}`, strings.Repeat("(.*)", 250),
	}
	ports := []mesh.InboundPort{{Port: 80, Protocol: mesh.HTTP}}
	for _, expr := range expressions {
		if err := mesh.CheckRegex(expr); err != nil {
			t.Errorf("%.40q: %v", expr, err)
		}
		ports[0].Rules = append(ports[0].Rules, mesh.Rule{Source: "TrafficTarget books/x", Callers: []mesh.Identity{buyer}, Match: mesh.HTTPMatch{
			Path:    mesh.StringMatch{Kind: mesh.Regex, Value: expr},
			Headers: []mesh.HeaderMatch{{Name: "x", Value: mesh.StringMatch{Kind: mesh.Regex, Value: expr}}},
		}})
	}
	s := &server{ca: envoytest.NewCA(t)}
	e := envoytest.Start(t, envoytest.Pod{Namespace: "books", Name: "buyer-1", ServiceAccount: "buyer", Certificate: s.ca.Secret(t, buyer.URI(trustDomain))})
	apply(t, e, s.view(ports...))

	ports[0].Rules[0].Match.Path.Value = `\C`
	if _, err := xds.NewCache().Set(seal(t, s.view(ports...))); err == nil || !strings.Contains(err.Error(), "route inbound:80") {
		t.Errorf("a faulty expression that got past the model: %v; the error must name the resource", err)
	}
}
