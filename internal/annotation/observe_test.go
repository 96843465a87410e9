package annotation

import (
	"testing"

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
