package xds

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// An encoder collects the resources of one part and every fault in them.
type encoder struct {
	part   *Part
	faults []error // of the resource that is being made
	errs   []error // all, by resource
}

// resourcesField is the number of DeltaDiscoveryResponse.resources.
const resourcesField = 2

// add encodes a resource. What Envoy would refuse becomes a fault of the part.
func (e *encoder) add(t Type, name string, m proto.Message) *Resource {
	body := e.marshal(m)
	return e.put(t, name, body, digest(body))
}

// addCluster encodes a cluster and the assignment of its endpoints, whose version
// covers the cluster: Envoy warms a changed cluster until its endpoints are sent
// again.
func (e *encoder) addCluster(c *clusterv3.Cluster, a *endpointv3.ClusterLoadAssignment) {
	r := e.add(Cluster, c.Name, c)
	body := e.marshal(a)
	e.put(Endpoints, a.ClusterName, body, digest(body)+"."+r.Version)
}

func (e *encoder) put(t Type, name string, body []byte, version string) *Resource {
	envelope := e.marshal(&discoveryv3.Resource{
		Name: name, Version: version,
		Resource: &anypb.Any{TypeUrl: t.URL(), Value: body},
	})
	if len(e.faults) > 0 {
		e.errs = append(e.errs, fmt.Errorf("%s %s: %w", t, name, errors.Join(e.faults...)))
		e.faults = nil
	}
	wire := protowire.AppendTag(nil, resourcesField, protowire.BytesType)
	r := &Resource{Name: name, Version: version, Wire: protowire.AppendBytes(wire, envelope)}
	e.part.Resources[t] = append(e.part.Resources[t], r)
	return r
}

// done returns the finished part, or all of its faults.
func (e *encoder) done() (*Part, error) {
	for t, list := range e.part.Resources {
		slices.SortFunc(list, func(a, b *Resource) int { return strings.Compare(a.Name, b.Name) })
		for i, r := range list {
			if i > 0 && r.Name == list[i-1].Name {
				e.errs = append(e.errs, fmt.Errorf("%s %s is there twice", Type(t), r.Name))
			}
		}
	}
	if err := errors.Join(e.errs...); err != nil {
		return nil, fmt.Errorf("encode %s: %w", e.part.Name, err)
	}
	return e.part, nil
}

// marshal encodes a message that Envoy accepts. It is the one way into a
// resource, for what is packed into an Any too, so every rule of Envoy's API is
// checked at every depth.
func (e *encoder) marshal(m proto.Message) []byte {
	if v, ok := m.(interface{ ValidateAll() error }); ok {
		if err := v.ValidateAll(); err != nil {
			e.faults = append(e.faults, err)
		}
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		e.faults = append(e.faults, err)
	}
	return b
}

// any packs a message.
func (e *encoder) any(m proto.Message) *anypb.Any {
	return &anypb.Any{TypeUrl: "type.googleapis.com/" + string(m.ProtoReflect().Descriptor().FullName()), Value: e.marshal(m)}
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8])
}
