package xds_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"testing"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
	"github.com/outrigger-mesh/outrigger/internal/xds"
	"github.com/outrigger-mesh/outrigger/internal/xds/envoytest"
)

// seal gives every part of a hand-made View the key of its content.
func seal(t *testing.T, v mesh.View) mesh.View {
	t.Helper()
	v.Trust, v.Inbound, v.Outbound = new(*v.Trust), new(*v.Inbound), new(*v.Outbound)
	v.Trust.Key, v.Inbound.Key = hashOf(t, v.Trust), hashOf(t, v.Inbound)
	list := v.Outbound.Bundles
	v.Outbound.Bundles = nil
	v.Outbound.Key = hashOf(t, v.Outbound)
	for _, b := range list {
		b := new(*b)
		b.Key = ""
		b.Key = hashOf(t, b)
		v.Outbound.Bundles = append(v.Outbound.Bundles, b)
	}
	return v
}

func hashOf(t *testing.T, v any) string {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}

// apply gives an Envoy a View and waits until it has it.
func apply(t *testing.T, e *envoytest.Envoy, v mesh.View) *xds.Set {
	t.Helper()
	set, err := xds.NewCache().Set(seal(t, v))
	if err != nil {
		t.Fatal(err)
	}
	e.Apply(t, set)
	return set
}
