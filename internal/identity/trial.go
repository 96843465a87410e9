package identity

import (
	"cmp"
	"context"
	"fmt"

	"k8s.io/apimachinery/pkg/util/uuid"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

// try has an authority sign a certificate as a pod's is, and throws it away: that its
// roots are known does not say that it signs for the mesh.
func (f *Follower) try(ctx context.Context, opened Opened) error {
	id := mesh.Identity{Namespace: f.Namespace, ServiceAccount: ServiceAccount}
	template := newTemplate(id, opened.Authority.TrustDomain, string(uuid.NewUUID()), cmp.Or(f.Lifetime, defaultLifetime))
	template.MayNameNoPod = mayNameNoPod(opened.Authority)
	_, request, err := newRequest(template)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, firstAnswer)
	defer cancel()
	if _, err := issue(ctx, opened.Issuer, request, template); err != nil {
		return fmt.Errorf("it does not sign for the mesh: %w", err)
	}
	return nil
}

// tried takes what came of that. One that failed is closed, and opened again later; one
// that the mesh trusts by now stays.
func (f *Follower) tried(ctx context.Context, one *running, err error) {
	if ctx.Err() != nil {
		return // it is being closed
	}
	name := one.Authority.Name
	f.mu.Lock()
	trusted := false
	if f.state != nil {
		_, trusted = f.state.Find(name)
	}
	usable := err == nil || trusted
	if usable {
		one.untried = false
	} else if f.opened[name] == one {
		delete(f.opened, name)
	}
	f.mu.Unlock()
	if usable {
		f.isOpen(one.Authority)
	} else {
		f.fail(one.Authority, err)
		one.stop()
	}
	f.Changed()
}
