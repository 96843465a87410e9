package xds

import (
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
)

// A Type is a kind of Envoy resource, in the order in which additions are sent.
type Type int

const (
	Cluster Type = iota
	Endpoints
	Secret
	Listener
	Route
	numTypes
)

// Types lists all of them in order.
func Types() []Type { return []Type{Cluster, Endpoints, Secret, Listener, Route} }

// URL returns the type URL of the xDS protocol.
func (t Type) URL() string {
	return [numTypes]string{
		resourcev3.ClusterType, resourcev3.EndpointType, resourcev3.SecretType, resourcev3.ListenerType, resourcev3.RouteType,
	}[t]
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
type Part struct {
	Key       string
	Resources [numTypes][]*Resource // sorted by name
}

// A Set is the whole configuration of a proxy: Parts sorted by key, each once.
// Two Parts of a Set never hold a resource of the same type and name.
type Set struct {
	parts []*Part
}
