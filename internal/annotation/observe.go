package annotation

import (
	"strconv"
	"strings"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

// AccessLog says what leaves a line in the access log: "errors" is what was denied
// or failed, "on" everything, "off" nothing. On a namespace or, before it, a pod it
// holds for what pods are sent and what they send; on a Service, before both, for what
// its pods are sent for it.
const AccessLog = "outrigger.dev/access-log"

const allowedAccessLog = "on, off or errors"

// TraceSampling says of how many requests to a Service spans are made, in percent.
// It counts where the mesh has a collector.
const TraceSampling = "outrigger.dev/trace-sampling"

const allowedSampling = "a number from 0 to 100 with at most two decimals, such as 5 or 0.25"

// ParseSampling reads a percentage. Envoy counts in hundredths of a percent, so a
// finer one is not allowed.
func ParseSampling(text string) (mesh.Sampling, bool) {
	whole, decimals, dotted := strings.Cut(text, ".")
	if dotted && (decimals == "" || len(decimals) > 2) {
		return 0, false
	}
	n, err := strconv.ParseUint(whole+(decimals + "00")[:2], 10, 16)
	return mesh.Sampling(n), err == nil && whole != "" && n <= uint64(mesh.Always)
}

// parseSampling returns it as a namespace or a Service has it, which may say none.
func parseSampling(text string) (*mesh.Sampling, bool) {
	s, ok := ParseSampling(text)
	return &s, ok
}

func observeSubject() subject {
	return subject{
		title: "What is logged and traced",
		text:  "See [observability.md](observability.md). Case does not matter.",
		keys: []Key{{
			Name: TraceSampling, On: Namespace | Service, Type: "number", Unit: "percent", Allowed: allowedSampling, Default: "the chart's",
			Effect: "of how many HTTP requests to a Service spans are made, where the chart names a collector. The proxy that a request meets first decides, the caller's or, without one, the server's, " +
				"and what the caller itself has decided is kept: a request with `traceparent` is traced if that says so, whatever stands here",
			Otherwise: "what the namespace says, or else the chart, holds",
			Valid:     valid(ParseSampling),
		}, {
			Name: AccessLog, On: Namespace | Service | Pod, Type: "word", Allowed: allowedAccessLog, Default: "errors",
			Effect: "which calls leave a line in the access log: `errors` those that were denied or failed, `on` all, `off` none. " +
				"A pod or, where it says nothing, its namespace decides for what it sends and is sent, and before both a Service for what its pods are sent for it",
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
