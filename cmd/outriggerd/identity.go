package main

import (
	"context"
	"errors"
	"time"

	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/metrics"

	"github.com/outrigger-mesh/outrigger/internal/controller"
	"github.com/outrigger-mesh/outrigger/internal/identity"
	"github.com/outrigger-mesh/outrigger/internal/mesh"
	"github.com/outrigger-mesh/outrigger/internal/rotation"
)

// The ClusterTrustBundle is looked at so often, and so soon after a failure.
const bundleInterval, bundleRetry = 10 * time.Second, 5 * time.Second

// rootsSignals tell those who use the mesh's roots that they are other ones.
// Each holds at most one signal.
type rootsSignals struct{ keeper, publisher chan struct{} }

func newRootsSignals() rootsSignals {
	return rootsSignals{keeper: make(chan struct{}, 1), publisher: make(chan struct{}, 1)}
}

// changed never blocks.
func (r rootsSignals) changed() {
	notify(r.keeper)
	notify(r.publisher)
}

// notify never blocks.
func notify(listener chan<- struct{}) {
	select {
	case listener <- struct{}{}:
	default: // a signal is waiting already
	}
}

// wireIdentity keeps the mesh's authorities open, leads from one to another, and
// keeps their roots where pods find them.
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
	p.serving = identity.NewServing(&p.authorities, p.cfg.namespace, p.cfg.leaf)
	p.ready = append(p.ready, p.serving.Ready)
	roots := &controller.RootReader{Client: p.direct, Scope: rotation.RootScope{Namespace: p.cfg.namespace, VaultCA: p.cfg.vaultCA}}
	rotator := controller.NewRotator(controller.RotatorConfig{
		Cache: p.mgr.GetCache(), Client: p.direct, Lookup: p.lookup, First: p.cfg.authority,
		Open: p.follower.Also, Opened: p.follower.Seen, Roles: roots.Goal, Told: roots.Tell,
		Events: p.mgr.GetEventRecorder("outriggerd"), Log: p.log.WithName("rotation"), Metrics: metrics.Registry,
	})
	p.follower.Authorities, p.follower.Open, p.follower.Log = &p.authorities, p.openIssuer, p.log.WithName("authorities")
	p.follower.Namespace, p.follower.Lifetime = p.cfg.namespace, p.cfg.leaf
	p.follower.Changed = func() {
		p.roots.changed()
		rotator.Changed()
	}
	return errors.Join(
		p.mgr.Add(rotator),
		p.mgr.Add(&controller.StateFollower{
			Cache: p.mgr.GetCache(), Client: p.direct, Namespace: p.cfg.namespace, Mesh: p.cfg.mesh,
			Replica: p.cfg.pod, UID: p.cfg.podUID, First: p.cfg.authority,
			Follow: p.follow, Report: p.report, Log: p.log.WithName("report"),
		}),
		p.mgr.Add(everywhere(p.follower.Run)),
		p.mgr.Add(everywhere(p.keepClusterBundle)),
		p.mgr.Add(everywhere(func(ctx context.Context) error { return p.serving.Run(ctx, p.log.WithName("serving")) })),
		p.mgr.Add(&controller.TrustKeeper{
			Cache: p.mgr.GetCache(), Members: p.lookup.Members, Log: p.log.WithName("trust"),
			Sync: p.syncTrust, Changed: p.roots.keeper,
		}),
	)
}

// keepClusterBundle keeps the mesh's ClusterTrustBundle. Every replica writes it once, as
// soon as the roots are known: pods that ask for it wait until it is there. From then on
// the elected one does, when the roots change and, against whoever else writes it, every
// ten seconds.
func (p *plane) keepClusterBundle(ctx context.Context) error {
	if p.bundle == "" {
		return nil
	}
	elected, leads, written := p.mgr.Elected(), false, false
	for ctx.Err() == nil {
		changed, again := p.authorities.Changed(), bundleInterval
		if _, err := p.authorities.Now(); err == nil && (leads || !written) {
			if written = p.writeClusterBundle(ctx); !written {
				again = bundleRetry
			}
		}
		tick := time.NewTimer(again)
		select {
		case <-ctx.Done():
		case <-changed:
		case <-elected:
			elected, leads = nil, true
		case <-tick.C:
		}
		tick.Stop()
	}
	return nil
}

// writeClusterBundle reports whether the bundle is what it should be.
func (p *plane) writeClusterBundle(ctx context.Context) bool {
	wrote, err := p.trust.SyncClusterBundle(ctx)
	if err != nil && ctx.Err() == nil {
		p.log.Error(err, "ClusterTrustBundle not written")
	}
	if wrote {
		p.log.Info("trust roots written", "clusterTrustBundle", p.bundle)
	}
	return err == nil
}

// follow passes the state of the authorities on.
func (p *plane) follow(s rotation.State) {
	p.follower.Follow(s)
	var awaited *mesh.TrustDomain
	if signing, ok := s.Find(s.Signing); ok && s.Rotation != nil {
		awaited = &mesh.TrustDomain{Name: signing.TrustDomain, Bundle: signing.Roots}
	}
	if err := p.xds.Await(awaited); err != nil {
		p.log.Error(err, "certificates that name no pod are not looked at again", "authority", s.Signing)
	}
}

// report is what this replica knows of its pods, and of itself.
func (p *plane) report() rotation.Report {
	report := rotation.Report{Groups: rotation.Gather(p.known())}
	if accepted, err := p.authorities.Now(); err == nil {
		report.Generation = min(accepted.Generation, p.acknowledged.newest())
	}
	if name, end, above, err := p.serving.Ends(); err == nil {
		report.Serving, report.ServingEnd, report.IntermediateEnd = name, end, above
	}
	return report
}

// syncTrust makes the roots what they should be in the mesh's namespaces, and says what it
// changed.
func (p *plane) syncTrust(ctx context.Context, namespaces []string) ([]string, error) {
	changes, err := p.trust.Sync(ctx, namespaces)
	var told []string
	for _, change := range changes {
		told = append(told, change.Namespace+" "+string(change.Action))
	}
	return told, err
}
