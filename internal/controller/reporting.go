package controller

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/outrigger-mesh/outrigger/internal/rotation"
)

const (
	// While a rotation is under way everybody looks every two seconds, else once a
	// minute. A report counts for ten times as long, and what clocks may differ by.
	hurried, leisurely = 2 * time.Second, time.Minute
	reportLife         = 10
)

// A StateFollower passes the state of the authorities on, and reports what this
// replica knows of its pods. It runs in every replica. All fields are required.
type StateFollower struct {
	Cache           cache.Cache
	Client          client.Client
	Namespace, Mesh string
	// Replica and UID are those of this pod.
	Replica, UID string
	// First is the authority that the mesh starts with.
	First rotation.Authority
	// Follow takes each state.
	Follow func(rotation.State)
	// Report returns what is known now.
	Report func() rotation.Report
	Log    logr.Logger

	state   *rotation.State
	written rotation.Report
	packed  []byte
}

// NeedLeaderElection is false: every replica follows.
func (f *StateFollower) NeedLeaderElection() bool { return false }

// Start follows until ctx ends.
func (f *StateFollower) Start(ctx context.Context) error {
	changes := newBurst()
	stop, err := watchAuthorities(ctx, f.Cache, f.Namespace, changes.changed)
	if err != nil {
		return err
	}
	defer stop()
	if !f.Cache.WaitForCacheSync(ctx) {
		return ctx.Err()
	}
	tick := time.NewTimer(0)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changes:
		case <-tick.C:
		}
		f.follow(ctx)
		if err := f.report(ctx, time.Now()); err != nil && ctx.Err() == nil {
			f.Log.Error(err, "not reported what this replica knows of its pods")
		}
		tick.Reset(pace(f.state))
	}
}

// pace is how often to look.
func pace(s *rotation.State) time.Duration {
	if s != nil && s.Rotation != nil {
		return hurried
	}
	return leisurely
}

// follow passes the newest state on. Where there is none, the chart says who signs;
// one that is gone or damaged stays what it was.
func (f *StateFollower) follow(ctx context.Context) {
	a, err := ReadAuthorities(ctx, f.Cache, f.Namespace)
	switch {
	case err == nil:
		f.state = &a.State
	case f.state != nil:
		f.Log.Error(err, "the state of the authorities stays what it was")
		return
	case apierrors.IsNotFound(err):
		first := rotation.NewState(f.First, "")
		first.Generation = 0
		f.Follow(first)
		return
	default:
		f.Log.Error(err, "the state of the authorities is not known")
		return
	}
	f.Follow(*f.state)
}

// report writes what this replica knows, if that is news or the last report ends.
func (f *StateFollower) report(ctx context.Context, now time.Time) error {
	report := f.Report()
	report.Replica = f.Replica
	life := reportLife * pace(f.state)
	report.Until = f.written.Until
	packed, err := report.Encode()
	if err != nil {
		return err
	}
	if bytes.Equal(packed, f.packed) && now.Add(life/2).Before(report.Until) && report.Until.Before(now.Add(2*life)) {
		return nil
	}
	report.Until = now.Add(life).UTC().Truncate(time.Second)
	if packed, err = report.Encode(); err != nil {
		return err
	}
	want := reportConfigMap(f.Namespace, f.Mesh, f.Replica, f.UID, packed)
	err = f.Client.Update(ctx, want)
	if apierrors.IsNotFound(err) {
		err = f.Client.Create(ctx, want)
	}
	if err != nil {
		return fmt.Errorf("write ConfigMap %s/%s: %w", want.Namespace, want.Name, err)
	}
	f.written, f.packed = report, packed
	return nil
}

// watchAuthorities tells of each change of the ConfigMap with the state.
func watchAuthorities(ctx context.Context, from cache.Cache, namespace string, changed func()) (stop func(), err error) {
	informer, err := from.GetInformer(ctx, &corev1.ConfigMap{})
	if err != nil {
		return nil, fmt.Errorf("watch ConfigMaps: %w", err)
	}
	registration, err := informer.AddEventHandler(toolscache.FilteringResourceEventHandler{
		FilterFunc: func(object any) bool {
			m, ok := object.(*corev1.ConfigMap)
			return ok && m.Namespace == namespace && m.Name == AuthoritiesConfigMap
		},
		Handler: toolscache.ResourceEventHandlerFuncs{
			AddFunc: func(any) { changed() }, UpdateFunc: func(any, any) { changed() }, DeleteFunc: func(any) { changed() },
		},
	})
	if err != nil {
		return nil, fmt.Errorf("watch ConfigMaps: %w", err)
	}
	return func() { _ = informer.RemoveEventHandler(registration) }, nil
}
