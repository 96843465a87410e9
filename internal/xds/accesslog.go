package xds

import (
	"fmt"
	"maps"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	celv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/filters/cel/v3"
	streamv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/stream/v3"
	runtimev3 "github.com/envoyproxy/go-control-plane/envoy/service/runtime/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/outrigger-mesh/outrigger/bootstrap"
	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

// Fields are the names and Envoy's formats of what a line of the access log
// holds. What is empty is left out of a line.
type fields map[string]string

// with returns both; more wins.
func (f fields) with(more fields) fields {
	out := maps.Clone(f)
	maps.Copy(out, more)
	return out
}

// Who calls and who answers, as their certificates have it.
const (
	self       = "%ENVIRONMENT(" + bootstrap.EnvIdentity + ")%"
	downstream = "%DOWNSTREAM_PEER_URI_SAN%"
	upstream   = "%UPSTREAM_PEER_URI_SAN%"
)

// call are the fields of every line. The field tls says in which mode the call was
// served.
func call(direction string) fields {
	f := fields{
		"time":        "%START_TIME%",
		"direction":   direction,
		"source":      "%DOWNSTREAM_REMOTE_ADDRESS%",
		"destination": "%DOWNSTREAM_LOCAL_ADDRESS%",
		"upstream":    "%UPSTREAM_HOST%",
		"flags":       "%RESPONSE_FLAGS%",
		"details":     "%RESPONSE_CODE_DETAILS%",
		"upstreamTLS": "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
		"ms":          "%DURATION%",
	}
	if direction == inboundName {
		return f.with(fields{"caller": downstream, "server": self, "tls": downstreamTLS})
	}
	return f.with(fields{"caller": self, "server": upstream, "cluster": "%UPSTREAM_CLUSTER%", "tls": upstreamTLS})
}

// What is wanted is in Envoy's runtime, which comes like a resource: so it changes
// without a listener, costs little wherever a filter asks for it, and is a proxy's
// own where all else is shared. (An expression over metadata was 8.5 kB for each
// service.) Keys begin with what they are about.
const (
	ownLog    = "outrigger.log" // what the workload sends, and is sent on no port of its own
	allKey    = ".all"          // 100 logs everything
	errorsKey = ".errors"       // 0 logs no errors
)

// portLog is about what the workload is sent on a port.
func portLog(port uint16) string { return fmt.Sprintf("%s.%d", ownLog, port) }

// wanted is what a setting lets through, of which errors are as a rule.
func wanted(about string, errors *accesslogv3.AccessLogFilter) *accesslogv3.AccessLogFilter {
	return anyOf(ofRuntime(about+allKey, 0), allOf(errors, ofRuntime(about+errorsKey, 100)))
}

// ofRuntime is true in as many percent of cases as the runtime says.
func ofRuntime(key string, otherwise uint32) *accesslogv3.AccessLogFilter {
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_RuntimeFilter{RuntimeFilter: &accesslogv3.RuntimeFilter{
		RuntimeKey: key, PercentSampled: &typev3.FractionalPercent{Numerator: otherwise},
	}}}
}

// logSettings encodes what is wanted, where it is not errors.
func (e *encoder) logSettings(in *mesh.Inbound) {
	layer := map[string]*structpb.Value{}
	set := func(about string, log mesh.AccessLog) {
		switch log {
		case mesh.LogOn:
			layer[about+allKey] = structpb.NewNumberValue(100)
		case mesh.LogOff:
			layer[about+errorsKey] = structpb.NewNumberValue(0)
		case mesh.LogErrors:
		}
	}
	set(ownLog, in.AccessLog)
	for _, p := range in.Ports {
		set(portLog(p.Port), p.AccessLog)
	}
	e.add(Runtime, bootstrap.RuntimeName, &runtimev3.Runtime{Name: bootstrap.RuntimeName, Layer: &structpb.Struct{Fields: layer}})
}

// httpErrors is true for a request that was denied or failed.
func httpErrors() *accesslogv3.AccessLogFilter {
	return anyOf(
		status(accesslogv3.ComparisonFilter_GE, 500),
		status(accesslogv3.ComparisonFilter_EQ, 403),
		anyFlag(),
	)
}

// httpLog writes a line for each request that a filter lets through.
func (e *encoder) httpLog(filter *accesslogv3.AccessLogFilter, f fields) *accesslogv3.AccessLog {
	return e.stdout(filter, f.with(fields{
		"method":    "%REQ(:METHOD)%",
		"authority": "%REQ(:AUTHORITY)%",
		// Without the query, where people put secrets.
		"path":    "%PATH(NQ)%",
		"status":  "%RESPONSE_CODE%",
		"request": "%REQ(X-REQUEST-ID)%",
	}))
}

// tcpLog writes a line for each connection that failed, as the workload wants it.
func (e *encoder) tcpLog(f fields) *accesslogv3.AccessLog {
	return e.stdout(wanted(ownLog, anyFlag()), f)
}

// stdout writes lines of JSON.
func (e *encoder) stdout(filter *accesslogv3.AccessLogFilter, f fields, formatters ...*corev3.TypedExtensionConfig) *accesslogv3.AccessLog {
	format := map[string]*structpb.Value{}
	for name, value := range f {
		format[name] = structpb.NewStringValue(value)
	}
	return &accesslogv3.AccessLog{
		Name:   "envoy.access_loggers.stdout",
		Filter: filter,
		ConfigType: &accesslogv3.AccessLog_TypedConfig{TypedConfig: e.any(&streamv3.StdoutAccessLog{
			AccessLogFormat: &streamv3.StdoutAccessLog_LogFormat{LogFormat: &corev3.SubstitutionFormatString{
				Format:          &corev3.SubstitutionFormatString_JsonFormat{JsonFormat: &structpb.Struct{Fields: format}},
				OmitEmptyValues: true,
				Formatters:      formatters,
			}},
		})},
	}
}

func anyOf(filters ...*accesslogv3.AccessLogFilter) *accesslogv3.AccessLogFilter {
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_OrFilter{OrFilter: &accesslogv3.OrFilter{Filters: filters}}}
}

func allOf(filters ...*accesslogv3.AccessLogFilter) *accesslogv3.AccessLogFilter {
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_AndFilter{AndFilter: &accesslogv3.AndFilter{Filters: filters}}}
}

func status(op accesslogv3.ComparisonFilter_Op, code uint32) *accesslogv3.AccessLogFilter {
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_StatusCodeFilter{
		StatusCodeFilter: &accesslogv3.StatusCodeFilter{Comparison: &accesslogv3.ComparisonFilter{
			Op: op,
			// The key exists only because Envoy's API wants one; nothing sets it.
			Value: &corev3.RuntimeUInt32{DefaultValue: code, RuntimeKey: "outrigger.access_log.status"},
		}},
	}}
}

// anyFlag is true where Envoy itself has something to say about what went wrong.
func anyFlag() *accesslogv3.AccessLogFilter { return flag() }

func flag(flags ...string) *accesslogv3.AccessLogFilter {
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_ResponseFlagFilter{
		ResponseFlagFilter: &accesslogv3.ResponseFlagFilter{Flags: flags},
	}}
}

// holds is a condition in Envoy's expression language. An expression costs some
// kilobytes wherever it stands, so none is in what each service of the mesh has.
func (e *encoder) holds(expression string) *accesslogv3.AccessLogFilter {
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_ExtensionFilter{ExtensionFilter: &accesslogv3.ExtensionFilter{
		Name:       "envoy.access_loggers.extension_filters.cel",
		ConfigType: &accesslogv3.ExtensionFilter_TypedConfig{TypedConfig: e.any(&celv3.ExpressionFilter{Expression: expression})},
	}}}
}
