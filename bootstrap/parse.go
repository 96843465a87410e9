package bootstrap

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// ReadyPath is where the agent answers whether the proxy is ready. No probe may
// have it.
const ReadyPath = "/ready"

// What the zero values of Settings mean.
const (
	DefaultLogLevel     = "warning"
	DefaultConcurrency  = 2
	DefaultDrainSeconds = 30
)

// Parse reads the JSON form of Settings, validates it and fills in the defaults.
// A field that this version does not know is an error: a proxy that ignores what
// the injector asked for is not the one that was asked for.
func Parse(text string) (Settings, error) {
	var s Settings
	d := json.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&s); err != nil {
		return Settings{}, fmt.Errorf("decode proxy settings: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return Settings{}, errors.New("decode proxy settings: more text after the JSON object")
	}
	if err := s.Validate(); err != nil {
		return Settings{}, fmt.Errorf("proxy settings: %w", err)
	}
	if s.LogLevel == "" {
		s.LogLevel = DefaultLogLevel
	}
	if s.Concurrency == 0 {
		s.Concurrency = DefaultConcurrency
	}
	if s.DrainSeconds == 0 {
		s.DrainSeconds = DefaultDrainSeconds
	}
	return s, nil
}

// Validate reports every value that cannot be honoured, each with the field's
// name, the value and what is allowed.
func (s Settings) Validate() error {
	var errs []error
	fault := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if s.Mesh == "" {
		fault("mesh is empty; it is the audience of the token")
	}
	if s.TrustDomain == "" || strings.ContainsAny(s.TrustDomain, "/:@ ") {
		fault("trustDomain: %q; allowed is a name such as cluster.local", s.TrustDomain)
	}
	for _, domain := range s.AlsoTrusted {
		if domain == "" || strings.ContainsAny(domain, "/:@ ") || domain == s.TrustDomain {
			fault("alsoTrusted: %q; allowed is another name such as cluster.local", domain)
		}
	}
	if _, _, ok := splitHostPort(s.ControlPlane); !ok {
		fault("controlPlane: %q; allowed is HOST:PORT", s.ControlPlane)
	}
	if id, ok := strings.CutPrefix(s.ControlPlaneID, "spiffe://"); !ok || !strings.Contains(id, "/") {
		fault("controlPlaneID: %q; allowed is a SPIFFE ID such as spiffe://cluster.local/ns/NAMESPACE/sa/NAME", s.ControlPlaneID)
	}
	if levels := LogLevels(); s.LogLevel != "" && !slices.Contains(levels, s.LogLevel) {
		fault("logLevel: %q; allowed are %s", s.LogLevel, strings.Join(levels, ", "))
	}
	if s.Concurrency < 0 || s.Concurrency > 1024 {
		fault("concurrency: %d; allowed is 0 to 1024", s.Concurrency)
	}
	if s.DrainSeconds < 0 || s.DrainSeconds > math.MaxUint32 {
		fault("drainSeconds: %d; allowed is 0 to %d", s.DrainSeconds, uint32(math.MaxUint32))
	}
	if s.MemoryLimit < 0 {
		fault("memoryLimit: %d; allowed is 0 and more", s.MemoryLimit)
	}
	if i := s.Identity; i != nil && (strings.ContainsAny(i.WorkloadAPI, "/\x00") || i.WorkloadAPI == "..") {
		fault("identity.workloadAPI: %q; allowed is the name of a file", i.WorkloadAPI)
	}
	seen := map[string]bool{}
	for _, p := range s.Probes {
		if seen[p.Path] {
			fault("probe %q is there twice", p.Path)
		}
		seen[p.Path] = true
		if err := p.validate(); err != nil {
			fault("probe %q: %w", p.Path, err)
		}
	}
	return errors.Join(errs...)
}

// LogLevels returns the levels that Envoy knows, the most talkative first.
func LogLevels() []string {
	return []string{"trace", "debug", "info", "warning", "error", "critical", "off"}
}

func (p Probe) validate() error {
	var errs []error
	if !strings.HasPrefix(p.Path, "/") || p.Path == ReadyPath {
		errs = append(errs, fmt.Errorf("path: allowed is one that begins with / and is not %s", ReadyPath))
	}
	if p.TimeoutSeconds < 0 {
		errs = append(errs, fmt.Errorf("timeout: %d; allowed is 0 and more", p.TimeoutSeconds))
	}
	var ports []int32
	if p.HTTP != nil {
		ports = append(ports, p.HTTP.Port)
		errs = append(errs, validateHeaders(p.HTTP.Headers)...)
	}
	if p.TCP != nil {
		ports = append(ports, p.TCP.Port)
	}
	if p.GRPC != nil {
		ports = append(ports, p.GRPC.Port)
	}
	if len(ports) != 1 {
		errs = append(errs, fmt.Errorf("%d of http, tcp and grpc are set; exactly one must be", len(ports)))
	}
	for _, port := range ports {
		// A probe of the agent itself could ask itself for ever.
		if port < 1 || port > 65535 || port == AgentPort {
			errs = append(errs, fmt.Errorf("port: %d; allowed is 1 to 65535 without the agent's own, %d", port, AgentPort))
		}
	}
	return errors.Join(errs...)
}

// validateHeaders refuses what could not be sent as one header line.
func validateHeaders(headers []Header) []error {
	var errs []error
	for _, h := range headers {
		if h.Name == "" || strings.TrimSpace(h.Name) != h.Name || strings.ContainsAny(h.Name+h.Value, "\r\n\x00") {
			errs = append(errs, fmt.Errorf("header %q: allowed are a name and a value on one line", h.Name))
		}
	}
	return errs
}

// splitHostPort takes HOST:PORT apart, [IPv6]:PORT included.
func splitHostPort(text string) (host string, port uint16, ok bool) {
	if address, err := netip.ParseAddrPort(text); err == nil {
		return address.Addr().String(), address.Port(), address.Port() > 0
	}
	host, number, _ := strings.Cut(text, ":")
	n, err := strconv.ParseUint(number, 10, 16)
	return host, uint16(n), host != "" && !strings.ContainsAny(host, "[]/@ ") && err == nil && n > 0
}
