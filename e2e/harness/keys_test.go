package harness

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"slices"
	"strings"
	"testing"

	"github.com/outrigger-mesh/outrigger/bootstrap"
)

// TestKeysAreFound plants keys in every form in which one could get out. With many
// keys each place in base64 and in lines is tried.
func TestKeysAreFound(t *testing.T) {
	for range 50 {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		sec1, err := x509.MarshalECPrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		wanted, err := Want("it", key)
		if err != nil {
			t.Fatal(err)
		}
		absent, err := Want("another", other)
		if err != nil {
			t.Fatal(err)
		}
		text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
		secret, err := bootstrap.CertificateSecret(nil, text)
		if err != nil {
			t.Fatal(err)
		}
		inJSON, err := json.Marshal(map[string]string{"msg": string(text)})
		if err != nil {
			t.Fatal(err)
		}
		for form, haystack := range map[string][]byte{
			"DER":            pkcs8,
			"SEC 1":          sec1,
			"PEM":            text,
			"PEM, SEC 1":     pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: sec1}),
			"PEM by DOS":     []byte(strings.ReplaceAll(string(text), "\n", "\r\n")),
			"PEM in JSON":    inJSON,
			"Envoy's file":   secret,
			"base64 of DER":  []byte(base64.StdEncoding.EncodeToString(pkcs8)),
			"base64 for URL": []byte(base64.RawURLEncoding.EncodeToString(sec1)),
			"hex":            []byte(hex.EncodeToString(pkcs8)),
			"HEX":            []byte(strings.ToUpper(hex.EncodeToString(sec1))),
		} {
			around := append(append([]byte("before "), haystack...), " after"...)
			if got := Found(around, []Wanted{absent, wanted}); !slices.Equal(got, []string{"it"}) {
				t.Errorf("%s: found %q, want it", form, got)
			}
		}
		if back, err := keyIn(secret); err != nil || !back.Equal(key) {
			t.Errorf("the key of a sidecar's file: %v", err)
		}
	}
}
