package main

import (
	"context"
	"fmt"

	"github.com/outrigger-mesh/outrigger/internal/identity"
)

// openIssuer makes an authority usable: it is there that each kind of authority
// gets its Issuer. The issuer calls changed when its roots are other ones. It is
// tried again after an error, so it leaves nothing behind then.
func (p *plane) openIssuer(ctx context.Context, a identity.Authority, known identity.Known, changed func()) (identity.Issuer, error) {
	switch {
	case a.BuiltIn != nil:
		return identity.OpenCA(ctx, p.home, identity.CAConfig{
			TrustDomain: a.TrustDomain, Secret: a.BuiltIn.Secret, Roots: known.Roots, Fresh: known.Fresh, Changed: changed,
		})
	case a.Vault != nil:
		return identity.OpenVault(ctx, p.home, identity.VaultConfig{Authority: a.Name, Vault: *a.Vault, TokenFile: p.cfg.vaultTokenFile, Known: known})
	default:
		return nil, fmt.Errorf("authority %s is of kind %q, which this outriggerd does not know", a.Name, a.Kind())
	}
}
