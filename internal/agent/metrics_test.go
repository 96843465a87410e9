package agent

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestRename(t *testing.T) {
	in := `# TYPE envoy_outrigger_requests_total counter
envoy_outrigger_requests_total{code="200",source="envoy_outrigger_x"} 3

# TYPE envoy_server_live gauge
envoy_server_live{} 1
`
	want := `# TYPE outrigger_requests_total counter
outrigger_requests_total{code="200",source="envoy_outrigger_x"} 3

# TYPE envoy_server_live gauge
envoy_server_live{} 1
`
	var out strings.Builder
	if err := rename(&out, strings.NewReader(in)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("what Prometheus reads (-want +got):\n%s", diff)
	}
	if err := rename(&out, strings.NewReader(strings.Repeat("x", maxLine+1))); err == nil {
		t.Error("a line that is cut passes for a whole one")
	}
}
