package iptables

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"
	"slices"
	"strings"
)

// What a field of Settings means when it is left out.
const (
	DefaultOutboundPort uint16 = 15001 // Envoy's listener for what the pod sends
	DefaultInboundPort  uint16 = 15003 // Envoy's listener for what the pod receives
	DefaultProxyUID     uint32 = 1500  // who Envoy and the agent run as

	MetricsPort uint16 = 15010 // reached directly, see Settings.AgentPorts
	AgentPort   uint16 = 15020 // reached directly, see Settings.AgentPorts
)

// The sidecar's own range of ports. Nothing in it but the agent ports may be
// reached from outside: a caller that reached the outbound port could use the
// pod's identity for calls of its own.
const (
	firstOwnPort uint16 = 15000
	lastOwnPort  uint16 = 15020
)

// Settings say what is redirected to the sidecar of one pod. They travel as one
// small JSON argument from the injector to outrigger-init, so the names are
// short and whatever has its zero value is left out.
//
// The zero Settings are those of a pod without annotations: everything is
// redirected. Each list only makes exceptions, and its order and duplicates
// mean nothing.
type Settings struct {
	// OutboundPort receives what the pod sends; 0 is DefaultOutboundPort.
	OutboundPort uint16 `json:"out,omitempty"`
	// InboundPort receives what others send to the pod; 0 is DefaultInboundPort.
	InboundPort uint16 `json:"in,omitempty"`
	// ProxyUID is the user of Envoy and of the agent, whose own traffic is not
	// redirected again; 0 is DefaultProxyUID, for root can never be the proxy.
	ProxyUID uint32 `json:"uid,omitempty"`
	// AgentPorts are answered in the sidecar itself and reached from outside
	// without redirection; empty is AgentPort and MetricsPort.
	AgentPorts []uint16 `json:"agent,omitempty"`
	// OwnAddresses are those of the pod, the main one of each family first. The
	// injector does not know them; outrigger-init fills them in.
	OwnAddresses []netip.Addr `json:"own,omitempty"`

	// ExcludeInboundPorts reach the application without passing the sidecar.
	// Ports of the sidecar (15000 to 15020) are refused.
	ExcludeInboundPorts []uint16 `json:"xin,omitempty"`
	// ExcludeOutboundPorts are called without passing the sidecar, at any address.
	ExcludeOutboundPorts []uint16 `json:"xout,omitempty"`
	// ExcludeOutboundCIDRs are called without passing the sidecar, at any port.
	// They win over IncludeOutboundCIDRs.
	ExcludeOutboundCIDRs []netip.Prefix `json:"xcidr,omitempty"`
	// IncludeOutboundCIDRs, where there is at least one, are all that is
	// redirected: a list that names only IPv4 ranges leaves IPv6 alone, and the
	// other way round. Empty means every address except link-local ones.
	IncludeOutboundCIDRs []netip.Prefix `json:"cidr,omitempty"`
	// ExcludeUIDs are users whose calls do not pass the sidecar.
	ExcludeUIDs []uint32 `json:"xuid,omitempty"`
}

// Parse reads the JSON form of Settings and validates it. A field that this
// version does not know is an error: ignoring it would redirect what somebody
// wanted left alone, or the reverse, without a word.
func Parse(text string) (Settings, error) {
	var s Settings
	d := json.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&s); err != nil {
		return Settings{}, fmt.Errorf("decode redirect settings: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return Settings{}, errors.New("decode redirect settings: more text after the JSON object")
	}
	if err := s.Validate(); err != nil {
		return Settings{}, fmt.Errorf("redirect settings: %w", err)
	}
	return s, nil
}

// String is the JSON form that Parse reads, on one line. Equal settings give
// equal text.
func (s Settings) String() string {
	text, err := json.Marshal(s)
	if err != nil { // numbers and addresses only: cannot happen
		return err.Error()
	}
	return string(text)
}

// Validate reports every value that cannot be honoured, each with the field's
// name, the value and what is allowed. The zero Settings are valid.
func (s Settings) Validate() error {
	s = s.withDefaults()
	var errs []error
	if s.OutboundPort == s.InboundPort {
		errs = append(errs, fmt.Errorf("OutboundPort: %d is the InboundPort too; they must differ", s.OutboundPort))
	}
	for _, p := range s.AgentPorts {
		if p == 0 || p == s.OutboundPort || p == s.InboundPort {
			errs = append(errs, fmt.Errorf("AgentPorts: %d; allowed is 1 to 65535 without the outbound port %d and the inbound port %d", p, s.OutboundPort, s.InboundPort))
		}
	}
	errs = append(errs, s.validatePorts()...)
	for _, a := range s.OwnAddresses {
		if !a.IsValid() || a.Is4In6() || a.Zone() != "" || a.IsLoopback() || a.IsUnspecified() {
			errs = append(errs, fmt.Errorf("OwnAddresses: %q; allowed is an address of the pod such as 10.1.2.3 or fd00::1", a))
		}
	}
	errs = append(errs, validateCIDRs("ExcludeOutboundCIDRs", s.ExcludeOutboundCIDRs)...)
	errs = append(errs, validateCIDRs("IncludeOutboundCIDRs", s.IncludeOutboundCIDRs)...)
	for _, uid := range append(slices.Clone(s.ExcludeUIDs), s.ProxyUID) {
		if uid == math.MaxUint32 { // (uid_t)-1, the kernel's "no user"
			errs = append(errs, fmt.Errorf("ProxyUID, ExcludeUIDs: %d is nobody's uid; allowed is 0 to %d", uid, uint32(math.MaxUint32-1)))
		}
	}
	return errors.Join(errs...)
}

func (s Settings) validatePorts() []error {
	var errs []error
	for _, p := range s.ExcludeInboundPorts {
		own := p >= firstOwnPort && p <= lastOwnPort || p == s.OutboundPort || p == s.InboundPort
		if p == 0 || own && !slices.Contains(s.AgentPorts, p) {
			errs = append(errs, fmt.Errorf("ExcludeInboundPorts: %d; allowed is 1 to 65535 without the sidecar's own ports (%d to %d)", p, firstOwnPort, lastOwnPort))
		}
	}
	if slices.Contains(s.ExcludeOutboundPorts, 0) {
		errs = append(errs, errors.New("ExcludeOutboundPorts: 0; allowed is 1 to 65535"))
	}
	return errs
}

// own returns the pod's main address of a family, if it has one.
func (s Settings) own(f Family) (netip.Addr, bool) {
	i := slices.IndexFunc(s.OwnAddresses, func(a netip.Addr) bool { return a.Is6() == (f == IPv6) })
	if i < 0 {
		return netip.Addr{}, false
	}
	return s.OwnAddresses[i], true
}

func validateCIDRs(field string, cidrs []netip.Prefix) []error {
	var errs []error
	for _, c := range cidrs {
		// An IPv4 address in IPv6 clothes would become a rule of the wrong family.
		if !c.IsValid() || c.Addr().Is4In6() {
			errs = append(errs, fmt.Errorf("%s: %q; allowed is an address range such as 10.0.0.0/8 or fd00::/8", field, c))
		}
	}
	return errs
}

// withDefaults returns the settings as the rules need them: defaults filled in,
// host bits of ranges cleared, every list sorted and without duplicates.
func (s Settings) withDefaults() Settings {
	if s.OutboundPort == 0 {
		s.OutboundPort = DefaultOutboundPort
	}
	if s.InboundPort == 0 {
		s.InboundPort = DefaultInboundPort
	}
	if s.ProxyUID == 0 {
		s.ProxyUID = DefaultProxyUID
	}
	if len(s.AgentPorts) == 0 {
		s.AgentPorts = []uint16{MetricsPort, AgentPort}
	}
	s.AgentPorts = sorted(s.AgentPorts)
	s.ExcludeInboundPorts = sorted(s.ExcludeInboundPorts)
	s.ExcludeOutboundPorts = sorted(s.ExcludeOutboundPorts)
	s.ExcludeUIDs = sorted(s.ExcludeUIDs)
	s.ExcludeOutboundCIDRs = sortedCIDRs(s.ExcludeOutboundCIDRs)
	s.IncludeOutboundCIDRs = sortedCIDRs(s.IncludeOutboundCIDRs)
	return s
}

func sorted[N uint16 | uint32](list []N) []N {
	return slices.Compact(slices.Sorted(slices.Values(list)))
}

func sortedCIDRs(list []netip.Prefix) []netip.Prefix {
	masked := make([]netip.Prefix, 0, len(list))
	for _, c := range list {
		if c.IsValid() {
			masked = append(masked, c.Masked())
		} else {
			masked = append(masked, c) // kept for Validate to name
		}
	}
	slices.SortFunc(masked, netip.Prefix.Compare)
	return slices.Compact(masked)
}
