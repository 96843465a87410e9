package annotation

import (
	"cmp"
	"errors"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Which traffic of a pod goes round its sidecar: comma-separated lists. Where a
// pod has both our key and OSM's, both lists count, and those of the mesh too.
const (
	ExcludeInboundPorts  = "outrigger.dev/inbound-port-exclusion-list"
	ExcludeOutboundPorts = "outrigger.dev/outbound-port-exclusion-list"
	ExcludeOutboundCIDRs = "outrigger.dev/outbound-ip-range-exclusion-list"
	IncludeOutboundCIDRs = "outrigger.dev/outbound-ip-range-inclusion-list"
	// ExcludeUIDs names users whose calls are not redirected, for instance that
	// of an init container that must reach the network before the mesh does.
	ExcludeUIDs = "outrigger.dev/outbound-uid-exclusion"

	OSMExcludeInboundPorts  = "openservicemesh.io/inbound-port-exclusion-list"
	OSMExcludeOutboundPorts = "openservicemesh.io/outbound-port-exclusion-list"
	OSMExcludeOutboundCIDRs = "openservicemesh.io/outbound-ip-range-exclusion-list"
	OSMIncludeOutboundCIDRs = "openservicemesh.io/outbound-ip-range-inclusion-list"
)

const (
	allowedInbound  = "ports from 1 to 65535 without the mesh's own, 15000 to 15020, separated by commas"
	allowedOutbound = "ports from 1 to 65535, separated by commas"
	allowedCIDRs    = "IPv4 or IPv6 ranges such as 10.0.0.0/8 or fd00::/8, separated by commas"
	allowedUIDs     = "user ids from 0 to 4294967294, separated by commas"
)

func redirectSubject() subject {
	s := subject{
		title: "What goes round the sidecar",
		text: "Lists of any length, joined with OSM's under its own name and with those of the whole mesh. Cloud metadata (169.254.0.0/16, fd00:ec2::/32), " +
			"node-local DNS, UDP and the Kubernetes API server need no exclusion.",
		keys: []Key{
			{Name: ExcludeInboundPorts, OSM: OSMExcludeInboundPorts, On: Pod, Type: "list", Allowed: allowedInbound, Effect: "these ports of the pod are reached without its proxy"},
			{Name: ExcludeOutboundPorts, OSM: OSMExcludeOutboundPorts, On: Pod, Type: "list", Allowed: allowedOutbound, Effect: "calls to these ports go without the proxy"},
			{Name: ExcludeOutboundCIDRs, OSM: OSMExcludeOutboundCIDRs, On: Pod, Type: "list", Allowed: allowedCIDRs, Effect: "calls to these ranges go without the proxy"},
			{Name: IncludeOutboundCIDRs, OSM: OSMIncludeOutboundCIDRs, On: Pod, Type: "list", Allowed: allowedCIDRs, Effect: "if there are any, only calls to these ranges go through the proxy"},
			{Name: ExcludeUIDs, On: Pod, Type: "list", Allowed: allowedUIDs, Effect: "calls of these users go without the proxy"},
		},
	}
	return ofPod(s, "none of its own", func(annotations map[string]string) error {
		_, err := ParseRedirect(annotations)
		return err
	})
}

// A Redirect is what a pod, or the mesh, excepts from redirection. Its lists are
// sorted and hold nothing twice.
type Redirect struct {
	ExcludeInboundPorts  []uint16
	ExcludeOutboundPorts []uint16
	ExcludeOutboundCIDRs []netip.Prefix
	IncludeOutboundCIDRs []netip.Prefix
	ExcludeUIDs          []uint32
}

// ParseRedirect reads the annotations of a pod. The error joins an [*Error] for
// each value that is not allowed.
func ParseRedirect(annotations map[string]string) (Redirect, error) {
	var r Redirect
	var errs []error
	ports := func(to *[]uint16, parse func(string) (uint16, bool), allowed string, keys ...string) {
		for _, key := range keys {
			list, ok := parseList(annotations[key], parse)
			if !ok {
				errs = append(errs, podError(key, annotations[key], allowed))
			}
			*to = append(*to, list...)
		}
		*to = union(cmp.Compare[uint16], *to)
	}
	cidrs := func(to *[]netip.Prefix, keys ...string) {
		for _, key := range keys {
			list, ok := parseList(annotations[key], parseCIDR)
			if !ok {
				errs = append(errs, podError(key, annotations[key], allowedCIDRs))
			}
			*to = append(*to, list...)
		}
		*to = union(netip.Prefix.Compare, *to)
	}
	ports(&r.ExcludeInboundPorts, parseForeignPort, allowedInbound, ExcludeInboundPorts, OSMExcludeInboundPorts)
	ports(&r.ExcludeOutboundPorts, parsePort, allowedOutbound, ExcludeOutboundPorts, OSMExcludeOutboundPorts)
	cidrs(&r.ExcludeOutboundCIDRs, ExcludeOutboundCIDRs, OSMExcludeOutboundCIDRs)
	cidrs(&r.IncludeOutboundCIDRs, IncludeOutboundCIDRs, OSMIncludeOutboundCIDRs)

	uids, ok := parseList(annotations[ExcludeUIDs], parseUID)
	if !ok {
		errs = append(errs, podError(ExcludeUIDs, annotations[ExcludeUIDs], allowedUIDs))
	}
	r.ExcludeUIDs = union(cmp.Compare[uint32], uids)
	if err := errors.Join(errs...); err != nil {
		return Redirect{}, err
	}
	return r, nil
}

// Union returns what r or other excepts. It changes neither.
func (r Redirect) Union(other Redirect) Redirect {
	return Redirect{
		ExcludeInboundPorts:  union(cmp.Compare[uint16], r.ExcludeInboundPorts, other.ExcludeInboundPorts),
		ExcludeOutboundPorts: union(cmp.Compare[uint16], r.ExcludeOutboundPorts, other.ExcludeOutboundPorts),
		ExcludeOutboundCIDRs: union(netip.Prefix.Compare, r.ExcludeOutboundCIDRs, other.ExcludeOutboundCIDRs),
		IncludeOutboundCIDRs: union(netip.Prefix.Compare, r.IncludeOutboundCIDRs, other.IncludeOutboundCIDRs),
		ExcludeUIDs:          union(cmp.Compare[uint32], r.ExcludeUIDs, other.ExcludeUIDs),
	}
}

// parseList reads a comma-separated list. White space around an item and empty
// items are overlooked, as a trailing comma harms nobody.
func parseList[T any](text string, parse func(string) (T, bool)) ([]T, bool) {
	var list []T
	for item := range strings.SplitSeq(text, ",") {
		if item = strings.TrimSpace(item); item == "" {
			continue
		}
		value, ok := parse(item)
		if !ok {
			return nil, false
		}
		list = append(list, value)
	}
	return list, true
}

func parsePort(text string) (uint16, bool) {
	n, err := strconv.ParseUint(text, 10, 16)
	return uint16(n), err == nil && n > 0
}

// parseForeignPort refuses the sidecar's own ports: whoever reached the outbound
// one from outside could make calls under the pod's identity.
func parseForeignPort(text string) (uint16, bool) {
	port, ok := parsePort(text)
	return port, ok && (port < 15000 || port > 15020)
}

func parseUID(text string) (uint32, bool) {
	n, err := strconv.ParseUint(text, 10, 32)
	return uint32(n), err == nil && n < math.MaxUint32 // the last one is the kernel's "no user"
}

// parseCIDR clears the bits after the prefix, as the kernel would.
func parseCIDR(text string) (netip.Prefix, bool) {
	prefix, err := netip.ParsePrefix(text)
	return prefix.Masked(), err == nil && !prefix.Addr().Is4In6()
}

func union[T comparable](compare func(T, T) int, lists ...[]T) []T {
	all := slices.Concat(lists...)
	slices.SortFunc(all, compare)
	return slices.Compact(all)
}
