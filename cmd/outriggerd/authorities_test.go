package main

import (
	"crypto/x509"
	"os"
	"os/exec"
	"testing"
)

// TestPublicAuthorities wants outriggerd to know public authorities where the system
// has none, as its image: a Vault server may have its certificate from one of them.
func TestPublicAuthorities(t *testing.T) {
	if os.Getenv("OUTRIGGER_TEST_BARE") == "" {
		again := exec.Command(os.Args[0], "-test.run=^TestPublicAuthorities$") //nolint:gosec // this test itself
		again.Env = append(os.Environ(), "OUTRIGGER_TEST_BARE=1", "SSL_CERT_FILE=/nowhere", "SSL_CERT_DIR=/nowhere")
		if said, err := again.CombinedOutput(); err != nil {
			t.Errorf("%v:\n%s", err, said)
		}
		return
	}
	pool, err := x509.SystemCertPool()
	if err != nil || pool.Equal(x509.NewCertPool()) {
		t.Errorf("no authority is known: %v", err)
	}
}
