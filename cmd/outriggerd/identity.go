package main

import (
	"context"
	"errors"

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

// wireIdentity opens the mesh's CA and keeps its roots where pods find them.
func (p *plane) wireIdentity(ctx context.Context, _ *rest.Config) error {
	home := identity.Home{Client: p.direct, Namespace: p.cfg.namespace, Mesh: p.cfg.mesh}
	ca, err := identity.OpenCA(ctx, home, identity.CAConfig{
		TrustDomain: p.cfg.trustDomain, Secret: p.cfg.caSecret, Changed: p.roots.changed,
	})
	if err != nil {
		return err
	}
	p.issuer = ca
	p.trust = identity.Trust{Home: home, Issuer: ca}
	if p.cfg.clusterTrustBundle == "auto" {
		if p.bundle, err = p.clusterBundle(ctx, home); err != nil {
			p.log.Info("pods get the roots from ConfigMaps", "reason", err.Error())
		}
	}
	return errors.Join(
		p.mgr.Add(everywhere(func(ctx context.Context) error { return ca.Run(ctx, p.log.WithName("ca")) })),
		p.mgr.Add(&controller.TrustKeeper{
			Cache: p.mgr.GetCache(), Members: p.lookup.Members, Log: p.log.WithName("trust"),
			Sync: p.syncTrust, Changed: p.roots.keeper,
		}),
	)
}

// clusterBundle writes the mesh's ClusterTrustBundle before any pod asks for it,
// and returns its name; empty where nodes do not mount it.
func (p *plane) clusterBundle(ctx context.Context, home identity.Home) (string, error) {
	can, err := home.MountsClusterBundles(ctx)
	if err != nil || !can {
		return "", err
	}
	if _, err := p.trust.SyncClusterBundle(ctx); err != nil {
		return "", err
	}
	return home.ClusterBundle(), nil
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
