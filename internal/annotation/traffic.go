package annotation

import (
	"cmp"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

// How calls to a Service are made. They stand on the Service that is called, or on
// its namespace for all of them.
const (
	Timeout             = "outrigger.dev/timeout"
	IdleTimeout         = "outrigger.dev/idle-timeout"
	RetryOn             = "outrigger.dev/retry-on"
	RetryAttempts       = "outrigger.dev/retry-attempts"
	RetryPerTryTimeout  = "outrigger.dev/retry-per-try-timeout"
	MaxConnections      = "outrigger.dev/max-connections"
	MaxRequests         = "outrigger.dev/max-requests"
	OutlierErrors       = "outrigger.dev/outlier-consecutive-errors"
	OutlierInterval     = "outrigger.dev/outlier-interval"
	OutlierEjectionTime = "outrigger.dev/outlier-ejection-time"
	LoadBalancer        = "outrigger.dev/load-balancer"
)

// MaxRetryAttempts bounds how often one call may be made again.
const MaxRetryAttempts = 25

// RetryWords are what Envoy can retry on, apart from status codes: first for HTTP,
// then for gRPC. Words that need what the mesh does not have are not among them.
func RetryWords() []string {
	return []string{
		"5xx", "gateway-error", "reset", "reset-before-request", "connect-failure", "envoy-ratelimited", "retriable-4xx", "refused-stream",
		"cancelled", "deadline-exceeded", "internal", "resource-exhausted", "unavailable",
	}
}

const (
	allowedDuration = "a duration of whole milliseconds, such as 1.5s or 2m; 0 is none"
	allowedPeriod   = "a duration of whole milliseconds above zero, such as 500ms or 10s"
	allowedLimit    = "a whole number up to 4294967295; 0 is no limit"
	allowedBalancer = "round-robin, least-request, random, or ring-hash:HEADER with the name of a request header"
)

func allowedRetryOn() string {
	return "status codes from 400 to 599 and the words " + strings.Join(RetryWords(), ", ") + ", separated by commas; an empty list adds nothing"
}

func allowedAttempts() string { return "a whole number from 1 to " + strconv.Itoa(MaxRetryAttempts) }

// TrafficKeys returns the keys about how a Service is called that mean something
// for HTTP, or else for other connections; of a headless Service or another.
func TrafficKeys(http, headless bool) []Key {
	var without []string
	if !http {
		without = append(without, Timeout, RetryOn, RetryAttempts, RetryPerTryTimeout, MaxRequests)
	}
	if headless {
		without = append(without, OutlierErrors, OutlierInterval, OutlierEjectionTime, LoadBalancer)
	}
	return slices.DeleteFunc(trafficSubject().keys, func(k Key) bool { return slices.Contains(without, k.Name) })
}

// PoolKeys returns the keys about the endpoints of a Service: of those of a split,
// each has its own.
func PoolKeys() []Key {
	pool := []string{MaxConnections, MaxRequests, OutlierErrors, OutlierInterval, OutlierEjectionTime, LoadBalancer}
	return slices.DeleteFunc(trafficSubject().keys, func(k Key) bool { return !slices.Contains(pool, k.Name) })
}

// ParseTraffic returns base with what the annotations of a namespace or a Service
// say in its place. A value that is not allowed changes nothing; [CheckNamespace]
// and [CheckService] tell.
func ParseTraffic(annotations map[string]string, base mesh.Traffic) mesh.Traffic {
	set(annotations, Timeout, parseDuration, &base.Timeout)
	set(annotations, IdleTimeout, parseDuration, &base.IdleTimeout)
	set(annotations, RetryOn, parseRetryOn, &base.Retry.On)
	set(annotations, RetryAttempts, parseAttempts, &base.Retry.Attempts)
	set(annotations, RetryPerTryTimeout, parseDuration, &base.Retry.PerTryTimeout)
	set(annotations, MaxConnections, parseLimit, &base.Pool.MaxConnections)
	set(annotations, MaxRequests, parseLimit, &base.Pool.MaxRequests)
	set(annotations, OutlierErrors, parseLimit, &base.Pool.Outlier.ConsecutiveErrors)
	set(annotations, OutlierInterval, parsePeriod, &base.Pool.Outlier.Interval)
	set(annotations, OutlierEjectionTime, parsePeriod, &base.Pool.Outlier.EjectionTime)
	set(annotations, LoadBalancer, parseBalancer, &base.Pool.LoadBalancer)
	set(annotations, TraceSampling, parseSampling, &base.Sampling)
	return base
}

func set[T any](annotations map[string]string, key string, parse func(string) (T, bool), to *T) {
	if text, ok := annotations[key]; ok {
		if value, ok := parse(text); ok {
			*to = value
		}
	}
}

// valid makes of a parser what only tells whether it takes a value.
func valid[T any](parse func(string) (T, bool)) func(string) bool {
	return func(value string) bool { _, ok := parse(value); return ok }
}

// parseDuration reads a duration that Envoy, which counts in milliseconds, keeps
// as it is.
func parseDuration(text string) (time.Duration, bool) {
	d, err := time.ParseDuration(text)
	return d, err == nil && d >= 0 && d%time.Millisecond == 0
}

func parsePeriod(text string) (time.Duration, bool) {
	d, ok := parseDuration(text)
	return d, ok && d > 0
}

func parseLimit(text string) (uint32, bool) {
	n, err := strconv.ParseUint(text, 10, 32)
	return uint32(n), err == nil
}

func parseAttempts(text string) (uint32, bool) {
	n, ok := parseLimit(text)
	return n, ok && n > 0 && n <= MaxRetryAttempts
}

func parseRetryOn(text string) ([]string, bool) {
	list, ok := parseList(text, func(item string) (string, bool) {
		item = strings.ToLower(item)
		code, err := strconv.ParseUint(item, 10, 16)
		return item, slices.Contains(RetryWords(), item) || err == nil && code >= 400 && code <= 599 && len(item) == 3
	})
	return union(cmp.Compare[string], list), ok
}

func parseBalancer(text string) (mesh.LoadBalancer, bool) {
	policy, header, hashed := strings.Cut(strings.ToLower(text), ":")
	b := mesh.LoadBalancer{Policy: mesh.Balancing(policy)}
	switch b.Policy {
	case mesh.RoundRobin, mesh.LeastRequest, mesh.Random:
		return b, !hashed
	case mesh.RingHash:
		if b.Header = header; header == "host" {
			b.Header = ":authority"
		}
		return b, isToken(header)
	}
	return mesh.LoadBalancer{}, false
}

// isToken reports whether text can be the name of a header.
func isToken(text string) bool {
	return text != "" && len(text) <= math.MaxUint8 && !strings.ContainsFunc(text, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && !strings.ContainsRune("!#$%&'*+-.^_`|~", r)
	})
}

func trafficSubject() subject {
	s := subject{
		title: "How a Service is called",
		text: "On the Service that is called, in a namespace of the mesh, or on its namespace for all of them; its callers' proxies do it, each for itself: with a limit of 10 " +
			"and three calling pods there may be 30. Where a split sends the calls of one Service to another, what concerns a request (time limits, retries) " +
			"comes from the Service that was called, and what concerns endpoints (limits, outliers, load balancing) from the one whose endpoints they are; " +
			"TCP ports, whose splits are weights of endpoints, have it all from the Service that was called. " +
			"A change cuts no connection and counts for the next request, on open connections too; for TCP, for the next connection.",
		keys: []Key{
			{
				Name: Timeout, Type: "duration", Allowed: allowedDuration, Default: "none", Valid: valid(parseDuration),
				Effect: "HTTP: the time from the end of a request to the end of its answer, with all tries; what takes longer is cut, with 504 if no answer has begun. Streams that go on longer are cut too",
			},
			{
				Name: IdleTimeout, Type: "duration", Allowed: allowedDuration, Default: "none", Valid: valid(parseDuration),
				Effect: "HTTP: a request or stream on which nothing moved for so long is cut. Other TCP: the connection is closed",
			},
			{
				Name: RetryOn, Type: "list", Allowed: allowedRetryOn(), Default: "none", Valid: valid(parseRetryOn),
				Effect: "HTTP: what else is tried again. What certainly never reached the application always is. A request whose answer has begun is not, nor one with a body that is too large to keep",
			},
			{
				Name: RetryAttempts, Type: "number", Unit: "tries after the first", Allowed: allowedAttempts(), Default: "3", Valid: valid(parseAttempts),
				Effect: "HTTP: how often a request is tried again, for whatever reason, on other endpoints first. All retries of a proxy together are held to a quarter of its requests once there are many",
			},
			{
				Name: RetryPerTryTimeout, Type: "duration", Allowed: allowedDuration, Default: "none", Valid: valid(parseDuration),
				Effect: "HTTP: as `timeout`, for each try. What it cuts is tried again if `retry-on` has `5xx`, `gateway-error` or 504",
			},
			{
				Name: MaxConnections, Type: "number", Unit: "connections", Allowed: allowedLimit, Default: "no limit", Valid: valid(parseLimit),
				Effect: "connections of one caller's proxy to all endpoints. HTTP/1: as many requests again wait for one, the next are answered 503. HTTP/2 shares one connection for each thread of the proxy, which this does not limit. Other TCP: the next is closed",
			},
			{
				Name: MaxRequests, Type: "number", Unit: "requests at a time", Allowed: allowedLimit, Default: "no limit", Valid: valid(parseLimit),
				Effect: "HTTP: requests of one caller's proxy to all endpoints that are under way; the next are answered 503",
			},
			{
				Name: OutlierErrors, Type: "number", Unit: "errors in a row", Allowed: "a whole number up to 4294967295; 0 is never", Default: "never", Valid: valid(parseLimit),
				Effect: "an endpoint with so many 5xx answers, gateway errors (502, 503, 504) or failed connections in a row gets nothing for a while. Never more than half of the endpoints at a time, so that a single one is not left out. Not for headless Services, whose callers choose the endpoint themselves",
			},
			{
				Name: OutlierInterval, Type: "duration", Allowed: allowedPeriod, Default: "10s", Valid: valid(parsePeriod),
				Effect: "how often endpoints that were left out are looked at, to take them back. Counts with `outlier-consecutive-errors`",
			},
			{
				Name: OutlierEjectionTime, Type: "duration", Allowed: allowedPeriod, Default: "30s", Valid: valid(parsePeriod),
				Effect: "how long an endpoint is left out: the n-th time n times as long, up to 5 minutes or this, whichever is longer",
			},
			{
				Name: LoadBalancer, Type: "word", Allowed: allowedBalancer, Default: "least-request for HTTP, else round-robin", Valid: valid(parseBalancer),
				Effect: "which endpoint is next. `ring-hash` sends requests with an equal header to the same one while endpoints stay the same, and those without it to any. A split of a TCP port keeps its weights by round robin and wins over this; `ring-hash` has no effect on what is not HTTP, and nothing has on headless Services",
			},
		},
	}
	for i := range s.keys {
		k := &s.keys[i]
		k.On, k.Otherwise = Namespace|Service, "what the namespace says, or else the default, holds"
	}
	return s
}
