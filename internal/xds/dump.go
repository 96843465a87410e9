package xds

import (
	"encoding/json"
	"fmt"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"sigs.k8s.io/yaml"
)

// Decode returns what Wire holds, with the resource inside.
func (r *Resource) Decode() (*discoveryv3.Resource, error) {
	number, kind, tag := protowire.ConsumeTag(r.Wire)
	if tag < 0 || number != resourcesField || kind != protowire.BytesType {
		return nil, fmt.Errorf("decode %s: not field %d of a response", r.Name, resourcesField)
	}
	body, n := protowire.ConsumeBytes(r.Wire[tag:])
	if n < 0 {
		return nil, fmt.Errorf("decode %s: %w", r.Name, protowire.ParseError(n))
	}
	out := &discoveryv3.Resource{}
	if err := proto.Unmarshal(body, out); err != nil {
		return nil, fmt.Errorf("decode %s: %w", r.Name, err)
	}
	return out, nil
}

// Dump returns the whole Set as YAML for people: lists of resources under the
// names of their types. Equal Sets give equal bytes.
func (s *Set) Dump() ([]byte, error) {
	dump := map[string][]json.RawMessage{}
	for _, t := range Types() {
		for r := range s.All(t) {
			envelope, err := r.Decode()
			if err != nil {
				return nil, err
			}
			m, err := envelope.GetResource().UnmarshalNew()
			if err != nil {
				return nil, fmt.Errorf("decode %s %s: %w", t, r.Name, err)
			}
			text, err := protojson.Marshal(m)
			if err != nil {
				return nil, fmt.Errorf("decode %s %s: %w", t, r.Name, err)
			}
			dump[t.String()] = append(dump[t.String()], text)
		}
	}
	return yaml.Marshal(dump)
}
