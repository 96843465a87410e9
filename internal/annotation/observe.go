package annotation

import (
	"strings"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

// AccessLog says what leaves a line in the access log: "errors" is what was denied
// or failed, "on" everything, "off" nothing. On a namespace it holds for what its
// pods are sent and what they send; on a Service, for what its pods are sent for
// it.
const AccessLog = "outrigger.dev/access-log"

const allowedAccessLog = "on, off or errors"

func observeSubject() subject {
	return subject{
		title: "What is logged",
		text:  "See [observability.md](observability.md). Case does not matter.",
		keys: []Key{{
			Name: AccessLog, On: Namespace | Service, Type: "word", Allowed: allowedAccessLog, Default: "errors",
			Effect: "which calls leave a line in the access log: `errors` those that were denied or failed, `on` all, `off` none. " +
				"A namespace decides for what its pods are sent and what they send, a Service for what its pods are sent for it",
			Otherwise: "errors are logged",
			Valid: func(v string) bool {
				_, _, err := ParseAccessLog(Namespace, map[string]string{AccessLog: v})
				return err == nil
			},
		}},
	}
}

// ParseAccessLog returns what the annotations of a namespace or Service say about
// the access log, and whether they say something. With the error it returns that
// errors are logged.
func ParseAccessLog(on Place, annotations map[string]string) (mesh.AccessLog, bool, error) {
	value, ok := annotations[AccessLog]
	if !ok {
		return mesh.LogErrors, false, nil
	}
	switch strings.ToLower(value) {
	case "on":
		return mesh.LogOn, true, nil
	case "off":
		return mesh.LogOff, true, nil
	case "errors":
		return mesh.LogErrors, true, nil
	}
	return mesh.LogErrors, true, &Error{Object: on.String() + " annotation", Key: AccessLog, Value: value, Allowed: allowedAccessLog, Otherwise: "errors are logged"}
}
