package main

import (
	"context"
	"errors"

	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/metrics"

	"github.com/outrigger-mesh/outrigger/internal/controller"
	"github.com/outrigger-mesh/outrigger/internal/identity"
	"github.com/outrigger-mesh/outrigger/internal/rotation"
)

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
	roots := &controller.RootReader{Client: p.direct, Namespace: p.cfg.namespace}
	rotator := controller.NewRotator(controller.RotatorConfig{
		Cache: p.mgr.GetCache(), Client: p.direct, Lookup: p.lookup, First: p.cfg.authority,
		Open: p.follower.Also, Opened: p.follower.Seen, Roles: roots.Goal, Told: roots.Tell,
		Events: p.mgr.GetEventRecorder("outriggerd"), Log: p.log.WithName("rotation"), Metrics: metrics.Registry,
	})
	p.follower.Authorities, p.follower.Open, p.follower.Log = &p.authorities, p.openIssuer, p.log.WithName("authorities")
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

// keepClusterBundle writes the mesh's ClusterTrustBundle as soon as the roots are
// known, in every replica: pods that ask for it wait until it is there. Changes of
// it are the elected replica's.
func (p *plane) keepClusterBundle(ctx context.Context) error {
	for p.bundle != "" {
		changed := p.authorities.Changed()
		if _, err := p.authorities.Now(); err == nil {
			if _, err := p.trust.SyncClusterBundle(ctx); err != nil {
				p.log.Error(err, "ClusterTrustBundle not written; the elected replica tries again")
			}
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
	return nil
}

// follow passes the state of the authorities on.
func (p *plane) follow(s rotation.State) {
	p.follower.Follow(s)
	p.xds.Changing(s.Rotation != nil)
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
