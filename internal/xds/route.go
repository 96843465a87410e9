package xds

import (
	"cmp"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	previousv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

// What is tried again by default: only what certainly never reached the
// application, soon, and elsewhere.
const (
	retryOn            = "connect-failure,refused-stream,retriable-headers"
	retryAttempts      = 3
	retryBackOff       = time.Millisecond
	retryHostSelection = 32 // picks until one was not tried yet; with five, the last of three was missed
)

// routes encodes the routes of a bundle. Shares of the bundle itself lead to the
// cluster self.
func (e *encoder) routes(name string, b *mesh.Bundle, self string) {
	host := anyHost(name)
	host.RetryPolicy = e.retry(mesh.Retry{})
	for _, r := range b.Routes {
		host.Routes = append(host.Routes, traced(e.route(r, b.Name, self), r.Sampling)...)
	}
	e.add(Route, name, &routev3.RouteConfiguration{
		Name:                    name,
		VirtualHosts:            []*routev3.VirtualHost{host},
		ResponseHeadersToRemove: []string{unsentHeader},
	})
}

// anyHost takes every request: it was routed by address already.
func anyHost(name string, routes ...*routev3.Route) *routev3.VirtualHost {
	return &routev3.VirtualHost{Name: name, Domains: []string{"*"}, Routes: routes}
}

func (e *encoder) route(r mesh.Route, owner mesh.PortName, self string) *routev3.Route {
	out := &routev3.Route{Match: e.routeMatch(r.Match)}
	shares := slices.DeleteFunc(slices.Clone(r.Shares), func(s mesh.Share) bool { return s.Weight == 0 })
	if len(shares) == 0 {
		out.Action = &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{Status: 503}}
		return out
	}
	clusterOf := func(s mesh.Share) string {
		if s.To == owner {
			return self
		}
		return s.To.String()
	}
	action := &routev3.RouteAction{Timeout: durationpb.New(r.Timeout), HashPolicy: hashes(r.HashHeaders)}
	if r.IdleTimeout > 0 {
		action.IdleTimeout = durationpb.New(r.IdleTimeout)
	}
	if len(shares) == 1 {
		action.ClusterSpecifier = &routev3.RouteAction_Cluster{Cluster: clusterOf(shares[0])}
	} else {
		weighted, total := &routev3.WeightedCluster{}, uint64(0)
		for _, s := range shares {
			total += uint64(s.Weight)
			weighted.Clusters = append(weighted.Clusters, &routev3.WeightedCluster_ClusterWeight{
				Name: clusterOf(s), Weight: wrapperspb.UInt32(s.Weight),
			})
		}
		if total > math.MaxUint32 {
			e.faults = append(e.faults, fmt.Errorf("weights add up to %d; at most %d is allowed", total, uint32(math.MaxUint32)))
		}
		action.ClusterSpecifier = &routev3.RouteAction_WeightedClusters{WeightedClusters: weighted}
	}
	if !r.Retry.IsZero() {
		action.RetryPolicy = e.retry(r.Retry)
	}
	out.Action = &routev3.Route_Route{Route: action}
	return out
}

// retry adds to the default, which is safe for every request.
func (e *encoder) retry(r mesh.Retry) *routev3.RetryPolicy {
	policy := &routev3.RetryPolicy{
		RetryOn:              strings.Join(append([]string{retryOn}, words(r)...), ","),
		RetriableStatusCodes: statusCodes(r),
		NumRetries:           wrapperspb.UInt32(cmp.Or(r.Attempts, retryAttempts)),
		RetriableHeaders: []*routev3.HeaderMatcher{{
			Name: unsentHeader, HeaderMatchSpecifier: &routev3.HeaderMatcher_PresentMatch{PresentMatch: true},
		}},
		RetryHostPredicate: []*routev3.RetryPolicy_RetryHostPredicate{{
			Name:       "envoy.retry_host_predicates.previous_hosts",
			ConfigType: &routev3.RetryPolicy_RetryHostPredicate_TypedConfig{TypedConfig: e.any(&previousv3.PreviousHostsPredicate{})},
		}},
		HostSelectionRetryMaxAttempts: retryHostSelection,
		RetryBackOff:                  &routev3.RetryPolicy_RetryBackOff{BaseInterval: durationpb.New(retryBackOff)},
	}
	if r.PerTryTimeout > 0 {
		policy.PerTryTimeout = durationpb.New(r.PerTryTimeout)
	}
	return policy
}

func (e *encoder) routeMatch(m mesh.HTTPMatch) *routev3.RouteMatch {
	out := &routev3.RouteMatch{Headers: e.headers(m)}
	switch m.Path.Kind {
	case mesh.Exact:
		out.PathSpecifier = &routev3.RouteMatch_Path{Path: m.Path.Value}
	case mesh.Regex:
		out.PathSpecifier = &routev3.RouteMatch_SafeRegex{SafeRegex: e.regex(m.Path.Value)}
	case mesh.Prefix:
		if prefix := strings.TrimSuffix(m.Path.Value, "/"); prefix != "" {
			out.PathSpecifier = &routev3.RouteMatch_PathSeparatedPrefix{PathSeparatedPrefix: prefix}
			break
		}
		fallthrough // the prefix / is every path
	default:
		out.PathSpecifier = &routev3.RouteMatch_Prefix{Prefix: "/"}
	}
	return out
}

// headers are the conditions on the method and on headers.
func (e *encoder) headers(m mesh.HTTPMatch) []*routev3.HeaderMatcher {
	var out []*routev3.HeaderMatcher
	switch len(m.Methods) {
	case 0:
	case 1:
		out = append(out, header(":method", exact(m.Methods[0])))
	default:
		quoted := make([]string, len(m.Methods))
		for i, method := range m.Methods {
			quoted[i] = regexp.QuoteMeta(method)
		}
		out = append(out, header(":method", e.matcher(mesh.StringMatch{Kind: mesh.Regex, Value: strings.Join(quoted, "|")})))
	}
	for _, h := range m.Headers {
		if h.Value.Kind == mesh.Any {
			out = append(out, &routev3.HeaderMatcher{Name: h.Name, HeaderMatchSpecifier: &routev3.HeaderMatcher_PresentMatch{PresentMatch: true}})
			continue
		}
		out = append(out, header(h.Name, e.matcher(h.Value)))
	}
	return out
}

func header(name string, m *matcherv3.StringMatcher) *routev3.HeaderMatcher {
	return &routev3.HeaderMatcher{Name: name, HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: m}}
}

// matcher says a condition that is not Any.
func (e *encoder) matcher(m mesh.StringMatch) *matcherv3.StringMatcher {
	switch m.Kind {
	case mesh.Regex:
		return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: e.regex(m.Value)}}
	case mesh.Prefix:
		return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: m.Value}}
	default:
		return exact(m.Value)
	}
}

// regex is an expression that Envoy matches against a whole value.
func (e *encoder) regex(expr string) *matcherv3.RegexMatcher {
	if err := mesh.CheckRegex(expr); err != nil {
		e.faults = append(e.faults, fmt.Errorf("regular expression %q: %w", expr, err))
	}
	return &matcherv3.RegexMatcher{Regex: expr}
}
