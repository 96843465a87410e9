package server

import (
	"google.golang.org/grpc/encoding"
	encodingproto "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/outrigger-mesh/outrigger/internal/xds"
)

// A response is a DeltaDiscoveryResponse whose resources are encoded already and
// shared with other streams.
type response struct {
	typ       xds.Type
	version   string
	nonce     string
	resources []*xds.Resource
	removed   []string
}

// Numbers of DeltaDiscoveryResponse's fields.
const (
	fieldSystemVersion    = 1
	fieldTypeURL          = 4
	fieldNonce            = 5
	fieldRemovedResources = 6
)

// tail encodes what belongs to this response alone. The fields of a message may
// come in any order.
func (r *response) tail() []byte {
	var b []byte
	text := func(field protowire.Number, s string) {
		b = protowire.AppendTag(b, field, protowire.BytesType)
		b = protowire.AppendString(b, s)
	}
	text(fieldSystemVersion, r.version)
	text(fieldTypeURL, r.typ.URL())
	text(fieldNonce, r.nonce)
	for _, name := range r.removed {
		text(fieldRemovedResources, name)
	}
	return b
}

// codec is gRPC's own for everything but a *response, which it writes without
// copying.
type codec struct{}

func (codec) Name() string { return encodingproto.Name }

func (codec) Marshal(v any) (mem.BufferSlice, error) {
	r, ok := v.(*response)
	if !ok {
		return encoding.GetCodecV2(encodingproto.Name).Marshal(v)
	}
	buffers := make(mem.BufferSlice, 0, len(r.resources)+1)
	for _, resource := range r.resources {
		buffers = append(buffers, mem.SliceBuffer(resource.Wire))
	}
	return append(buffers, mem.SliceBuffer(r.tail())), nil
}

func (codec) Unmarshal(data mem.BufferSlice, v any) error {
	return encoding.GetCodecV2(encodingproto.Name).Unmarshal(data, v)
}

// size returns the encoded size of the shared part.
func (r *response) size() int {
	n := 0
	for _, resource := range r.resources {
		n += len(resource.Wire)
	}
	return n
}
