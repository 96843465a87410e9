package xds

import (
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	streamv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/stream/v3"
	"google.golang.org/protobuf/types/known/structpb"
)

// httpLog writes a line for each request that was denied or failed.
func (e *encoder) httpLog() []*accesslogv3.AccessLog {
	return e.accessLog(&accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_OrFilter{OrFilter: &accesslogv3.OrFilter{
		Filters: []*accesslogv3.AccessLogFilter{
			status(accesslogv3.ComparisonFilter_GE, 500),
			status(accesslogv3.ComparisonFilter_EQ, 403),
			anyFlag(),
		},
	}}}, map[string]string{
		"method":    "%REQ(:METHOD)%",
		"authority": "%REQ(:AUTHORITY)%",
		// Without the query, where people put secrets.
		"path":    "%PATH(NQ)%",
		"status":  "%RESPONSE_CODE%",
		"request": "%REQ(X-REQUEST-ID)%",
	})
}

// tcpLog writes a line for each connection that was denied or failed.
func (e *encoder) tcpLog() []*accesslogv3.AccessLog {
	return e.accessLog(anyFlag(), nil)
}

func (e *encoder) accessLog(filter *accesslogv3.AccessLogFilter, more map[string]string) []*accesslogv3.AccessLog {
	fields := map[string]*structpb.Value{
		"time":        structpb.NewStringValue("%START_TIME%"),
		"caller":      structpb.NewStringValue("%DOWNSTREAM_PEER_URI_SAN%"),
		"source":      structpb.NewStringValue("%DOWNSTREAM_REMOTE_ADDRESS%"),
		"destination": structpb.NewStringValue("%DOWNSTREAM_LOCAL_ADDRESS%"),
		"upstream":    structpb.NewStringValue("%UPSTREAM_HOST%"),
		"cluster":     structpb.NewStringValue("%UPSTREAM_CLUSTER%"),
		"flags":       structpb.NewStringValue("%RESPONSE_FLAGS%"),
		"details":     structpb.NewStringValue("%RESPONSE_CODE_DETAILS%"),
		"upstreamTLS": structpb.NewStringValue("%UPSTREAM_TRANSPORT_FAILURE_REASON%"),
		"ms":          structpb.NewStringValue("%DURATION%"),
	}
	for field, format := range more {
		fields[field] = structpb.NewStringValue(format)
	}
	return []*accesslogv3.AccessLog{{
		Name:   "envoy.access_loggers.stdout",
		Filter: filter,
		ConfigType: &accesslogv3.AccessLog_TypedConfig{TypedConfig: e.any(&streamv3.StdoutAccessLog{
			AccessLogFormat: &streamv3.StdoutAccessLog_LogFormat{LogFormat: &corev3.SubstitutionFormatString{
				Format:          &corev3.SubstitutionFormatString_JsonFormat{JsonFormat: &structpb.Struct{Fields: fields}},
				OmitEmptyValues: true,
			}},
		})},
	}}
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
