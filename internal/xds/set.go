package xds

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"iter"
	"slices"
	"strings"

	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
)

// A Type is a kind of Envoy resource, in the order in which additions are sent; a
// Runtime, on which nothing depends, at any time.
type Type int

// The types that a proxy asks for.
const (
	Cluster Type = iota
	Endpoints
	Secret
	Listener
	Route
	Runtime
	numTypes
)

// Types lists all of them in order.
func Types() []Type { return []Type{Cluster, Endpoints, Secret, Listener, Route, Runtime} }

// URL returns the type URL of the xDS protocol.
func (t Type) URL() string {
	return [numTypes]string{
		resourcev3.ClusterType, resourcev3.EndpointType, resourcev3.SecretType, resourcev3.ListenerType, resourcev3.RouteType, resourcev3.RuntimeType,
	}[t]
}

// String returns the type's name as people say it: "cluster", "endpoints".
func (t Type) String() string {
	return [numTypes]string{"cluster", "endpoints", "secret", "listener", "route", "runtime"}[t]
}

// A Resource is one Envoy resource, encoded once and shared by all streams. It
// never changes.
type Resource struct {
	Name string
	// Version names the content. An assignment's version also covers its
	// cluster, because a cluster that changes waits for its endpoints to be sent
	// again.
	Version string
	// Wire is the resource as field 2 ("resources") of a DeltaDiscoveryResponse:
	// tag, length and an encoded envoy.service.discovery.v3.Resource.
	Wire []byte
}

// A Part is the resources of one half, or one bundle, of a View. Parts of equal
// Key are equal. A Part never changes.
//
// The names of a Part's resources belong to it: in every Set they are in the
// Part of the same Name, if anywhere.
type Part struct {
	Name      string
	Key       string
	Resources [numTypes][]*Resource // sorted by name
}

// A Set is the whole configuration of a proxy. It never changes, and Views that
// say the same give the same pointer as long as the [Cache] remembers.
type Set struct {
	version  string
	trust    string  // the key of the Trust
	own      []*Part // of the proxy's halves, sorted by name
	outbound []*Part // of the bundles, sorted by name; shared between Sets
}

func newSet(own, outbound []*Part, outboundVersion string) *Set {
	h := sha256.New()
	for _, p := range own {
		_, _ = io.WriteString(h, p.Key+"\n")
	}
	h.Write([]byte(outboundVersion))
	return &Set{version: hex.EncodeToString(h.Sum(nil)[:12]), own: own, outbound: outbound}
}

// Trust returns the key of the [mesh.Trust] that all of s says.
func (s *Set) Trust() string { return s.trust }

// Version names the content of s. Sets of equal version are equal.
func (s *Set) Version() string { return s.version }

// Resource returns the resource of that type and name, or nil.
func (s *Set) Resource(t Type, name string) *Resource {
	if i, found := slices.BinarySearchFunc(s.outbound, partOf(name), byName); found {
		if r := s.outbound[i].resource(t, name); r != nil {
			return r
		}
	}
	for _, p := range s.own {
		if r := p.resource(t, name); r != nil {
			return r
		}
	}
	return nil
}

// All yields the resources of a type, sorted by name.
func (s *Set) All(t Type) iter.Seq[*Resource] {
	var all []*Resource
	for _, parts := range [][]*Part{s.own, s.outbound} {
		for _, p := range parts {
			all = append(all, p.Resources[t]...)
		}
	}
	slices.SortFunc(all, func(a, b *Resource) int { return strings.Compare(a.Name, b.Name) })
	return slices.Values(all)
}

func (p *Part) resource(t Type, name string) *Resource {
	list := p.Resources[t]
	i, found := slices.BinarySearchFunc(list, name, func(r *Resource, name string) int { return strings.Compare(r.Name, name) })
	if !found {
		return nil
	}
	return list[i]
}

func byName(p *Part, name string) int { return strings.Compare(p.Name, name) }

// partOf returns the name of the bundle part that holds a resource: the
// resource's own, without what tells apart several of one type.
func partOf(resource string) string {
	name, _, _ := strings.Cut(resource, variantMark)
	return name
}

// variantMark separates a bundle's name from what tells apart its resources of
// one type. No name of a Kubernetes object holds it.
const variantMark = "|"
