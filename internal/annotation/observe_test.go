package annotation

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

func TestParseAccessLog(t *testing.T) {
	for value, want := range map[string]mesh.AccessLog{"on": mesh.LogOn, "OFF": mesh.LogOff, "errors": mesh.LogErrors} {
		got, said, err := ParseAccessLog(Namespace, map[string]string{AccessLog: value})
		if got != want || !said || err != nil {
			t.Errorf("%s: got %q, %v, %v", value, got, said, err)
		}
	}
	if got, said, err := ParseAccessLog(Service, nil); got != mesh.LogErrors || said || err != nil {
		t.Errorf("nothing said: got %q, %v, %v", got, said, err)
	}
	_, said, err := ParseAccessLog(Service, map[string]string{AccessLog: "yes"})
	if want := `service annotation outrigger.dev/access-log: "yes" is not allowed; use on, off or errors`; !said || err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestParseSampling(t *testing.T) {
	for value, want := range map[string]mesh.Sampling{"0": 0, "100": mesh.Always, "100.00": mesh.Always, "5": 500, "0.25": 25, "12.5": 1250, "0.01": 1, "00.5": 50} {
		if got, ok := ParseSampling(value); got != want || !ok {
			t.Errorf("%q: got %d, %v; want %d", value, got, ok, want)
		}
	}
	for _, value := range []string{"", ".", ".5", "5.", "100.01", "101", "-1", "+1", "0.001", "1e2", "5%", " 5", "0x10", "1_0", "99999999999"} {
		if got, ok := ParseSampling(value); ok {
			t.Errorf("%q is taken for %d", value, got)
		}
	}
	one := mesh.Sampling(100)
	base := mesh.Traffic{Sampling: &one}
	half := mesh.Sampling(50)
	for value, want := range map[string]*mesh.Sampling{"0.5": &half, "nonsense": &one} {
		if diff := cmp.Diff(want, ParseTraffic(map[string]string{TraceSampling: value}, base).Sampling); diff != "" {
			t.Errorf("%q over the namespace's 1 %% (-want +got):\n%s", value, diff)
		}
	}
}
