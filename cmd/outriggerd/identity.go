package main

import (
	"context"
	"errors"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/client-go/rest"

	"github.com/outrigger-mesh/outrigger/internal/controller"
	"github.com/outrigger-mesh/outrigger/internal/identity"
)

// rootsSignals tell those who use the mesh's roots that they are other ones.
// Each holds at most one signal.
type rootsSignals struct{ keeper, publisher chan struct{} }

func newRootsSignals() rootsSignals {
	return rootsSignals{keeper: make(chan struct{}, 1), publisher: make(chan struct{}, 1)}
}

// changed never blocks.
func (r rootsSignals) changed() {
	for _, listener := range []chan struct{}{r.keeper, r.publisher} {
		select {
		case listener <- struct{}{}:
		default: // a signal is waiting already
		}
	}
}

// wireIdentity opens the mesh's authority, as soon as that can be, and keeps its
// roots where pods find them.
func (p *plane) wireIdentity(ctx context.Context, _ *rest.Config) error {
	p.home = identity.Home{Client: p.direct, Namespace: p.cfg.namespace, Mesh: p.cfg.mesh}
	p.trust = identity.Trust{Home: p.home, Authorities: &p.authorities}
	if p.cfg.clusterTrustBundle == "auto" {
		can, err := p.home.MountsClusterBundles(ctx)
		if can {
			p.bundle = p.home.ClusterBundle()
		} else if err != nil {
			p.log.Info("pods get the roots from ConfigMaps", "reason", err.Error())
		}
	}
	return errors.Join(
		p.mgr.Add(everywhere(p.keepAuthority)),
		p.mgr.Add(&controller.TrustKeeper{
			Cache: p.mgr.GetCache(), Members: p.lookup.Members, Log: p.log.WithName("trust"),
			Sync: p.syncTrust, Changed: p.roots.keeper,
		}),
	)
}

// keepAuthority opens the authority, trying again until it can be, and follows it
// until ctx ends.
func (p *plane) keepAuthority(ctx context.Context) error {
	log := p.log.WithName("authority").WithValues("authority", p.cfg.authority.Name)
	issuer, err := p.openUntilDone(ctx, log)
	if err != nil {
		return nil //nolint:nilerr // ctx ended
	}
	opened := identity.Opened{Authority: p.cfg.authority, Issuer: issuer}
	p.authorities.Set(identity.Accepted{Signing: opened, Serving: opened, Trusted: []identity.Opened{opened}})
	p.rootsChanged()
	log.Info("authority is open", "kind", p.cfg.authority.Kind())
	if p.bundle != "" {
		// Before the elected replica looks: pods that ask for it wait for it.
		if _, err := p.trust.SyncClusterBundle(ctx); err != nil {
			log.Error(err, "ClusterTrustBundle not written; the elected replica tries again")
		}
	}
	if following, ok := issuer.(follower); ok {
		return following.Run(ctx, log)
	}
	return nil
}

func (p *plane) openUntilDone(ctx context.Context, log logr.Logger) (identity.Issuer, error) {
	again := time.NewTimer(0)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-again.C:
		}
		issuer, err := p.openIssuer(ctx, p.cfg.authority, p.rootsChanged)
		if err == nil {
			return issuer, nil
		}
		p.authorities.Missing(err)
		log.Error(err, "authority is not open", "retryIn", reopen.String())
		again.Reset(reopen)
	}
}

// rootsChanged tells everybody who uses the roots.
func (p *plane) rootsChanged() {
	p.authorities.RootsChanged()
	p.roots.changed()
}

// syncTrust makes the roots what they should be wherever pods find them, and says
// what it changed.
func (p *plane) syncTrust(ctx context.Context, namespaces []string) ([]string, error) {
	changes, err := p.trust.Sync(ctx, namespaces)
	var told []string
	for _, change := range changes {
		told = append(told, change.Namespace+" "+string(change.Action))
	}
	if p.bundle == "" {
		return told, err
	}
	wrote, bundleErr := p.trust.SyncClusterBundle(ctx)
	if wrote {
		told = append(told, "ClusterTrustBundle "+p.bundle)
	}
	return told, errors.Join(err, bundleErr)
}
