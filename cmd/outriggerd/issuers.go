package main

import (
	"context"
	"fmt"
	"time"

	"github.com/go-logr/logr"

	"github.com/outrigger-mesh/outrigger/internal/identity"
)

// reopen is how soon an authority that could not be opened is tried again.
const reopen = 10 * time.Second

// A follower is an issuer that follows something while it is open.
type follower interface {
	Run(ctx context.Context, log logr.Logger) error
}

// openIssuer makes an authority usable: it is there that each kind of authority
// gets its Issuer. The issuer calls changed when its roots are other ones. It is
// tried again after an error, so it leaves nothing behind then.
func (p *plane) openIssuer(ctx context.Context, a identity.Authority, changed func()) (identity.Issuer, error) {
	switch {
	case a.BuiltIn != nil:
		return identity.OpenCA(ctx, p.home, identity.CAConfig{TrustDomain: a.TrustDomain, Secret: a.BuiltIn.Secret, Changed: changed})
	case a.Vault != nil:
		return identity.OpenVault(ctx, p.home, identity.VaultConfig{Authority: a.Name, Vault: *a.Vault, TokenFile: p.cfg.vaultTokenFile})
	default:
		return nil, fmt.Errorf("authority %s is of kind %q, which this outriggerd does not know", a.Name, a.Kind())
	}
}
