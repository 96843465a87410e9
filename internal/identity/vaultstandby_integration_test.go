//go:build integration

package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/outrigger-mesh/outrigger/e2e/cluster/local"
	"github.com/outrigger-mesh/outrigger/internal/vault"
)

// TestVaultStandby asks a standby, which forwards to the active server or redirects
// there. Then the active one dies, another takes its place, and the token is as good as
// before.
func TestVaultStandby(t *testing.T) {
	cases := map[string]struct {
		redirect bool
		status   int
	}{
		"forwards":  {false, http.StatusOK},
		"redirects": {true, http.StatusTemporaryRedirect},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			members, err := local.StartVaults(t.Context(), t.TempDir(), "127.0.0.1", tc.redirect)
			must(t, err)
			for _, m := range members {
				t.Cleanup(m.Stop)
			}
			active, standby := sides(t, members)
			v := newVaultTestOf(t, "vault-"+name, active, nil, map[string]any{"period": "1h"})
			v.config.Vault.Address = standby.Address
			wantStandby(t, standby, tc.status)
			issuer := v.open(t)
			v.run(t, issuer)
			v.issued(t, issuer)

			active.Stop()
			eventually(t, "a certificate without the server that was active", func() error {
				_, err := v.issue(t.Context(), t, issuer, time.Hour)
				if answer, ok := errors.AsType[*vault.Error](err); ok && answer.Denied() {
					t.Errorf("the token is refused: %v", err)
				}
				return err
			})
			eventually(t, "another active server", func() error {
				for _, m := range members {
					if is, err := m.Active(t.Context()); m != active && err == nil && is {
						return nil
					}
				}
				return errors.New("there is none")
			})
		})
	}
}

// wantStandby wants a server to answer a call that is for the active one with that
// status.
func wantStandby(t *testing.T, server *local.Vault, status int) {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(server.CA)
	client := &http.Client{
		Transport:     &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	defer client.CloseIdleConnections()
	response, err := client.Get(server.Address + "/v1/" + vaultMount + "/cert/ca_chain")
	must(t, err)
	defer response.Body.Close()
	if response.StatusCode != status {
		t.Errorf("the standby answers %d; want %d", response.StatusCode, status)
	}
}

// sides returns the server that is active, and one that is not.
func sides(t *testing.T, members []*local.Vault) (active, standby *local.Vault) {
	t.Helper()
	eventually(t, "one server is active", func() error {
		active, standby = nil, nil
		for _, m := range members {
			switch is, err := m.Active(t.Context()); {
			case err != nil:
				return err
			case is:
				active = m
			default:
				standby = m
			}
		}
		if active == nil || standby == nil {
			return errors.New("there is none, or no other")
		}
		return nil
	})
	return active, standby
}
