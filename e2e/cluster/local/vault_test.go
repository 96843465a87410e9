//go:build integration

package local

import (
	"net/http"
	"strings"
	"testing"
)

func TestVaultKeepsItsDataThroughSealAndRestart(t *testing.T) {
	ctx := t.Context()
	v, err := StartVault(ctx, t.TempDir(), "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.Stop)
	if err := v.MakePKI(ctx, "pki", "mesh", "cluster.local", nil); err != nil {
		t.Fatal(err)
	}
	root := func() string {
		t.Helper()
		answer, err := v.Call(ctx, http.MethodGet, "pki/cert/ca", nil)
		if err != nil {
			t.Fatal(err)
		}
		return string(answer)
	}
	sealed := func() {
		t.Helper()
		if _, err := v.Call(ctx, http.MethodGet, "pki/cert/ca", nil); err == nil || !strings.Contains(err.Error(), "Vault is sealed") {
			t.Errorf("got error %v, want that it is sealed", err)
		}
		if err := v.Unseal(ctx); err != nil {
			t.Fatal(err)
		}
	}
	before := root()
	if !strings.Contains(before, "BEGIN CERTIFICATE") {
		t.Fatalf("got %s, want a certificate", before)
	}
	if err := v.Seal(ctx); err != nil {
		t.Fatal(err)
	}
	sealed()
	v.Stop()
	if err := v.Start(ctx); err != nil {
		t.Fatal(err)
	}
	sealed()
	certificate := func(answer string) string {
		return answer[strings.Index(answer, "BEGIN"):strings.LastIndex(answer, "END")]
	}
	if after := root(); certificate(after) != certificate(before) {
		t.Errorf("got %s after the restart, want %s", after, before)
	}
}
