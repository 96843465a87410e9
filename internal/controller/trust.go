package controller

import (
	"context"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/cache"
)

// again is how soon after a failure the trust is looked at again.
const again = 5 * time.Second

// A TrustKeeper keeps the mesh's roots in the namespaces of the mesh: it looks at
// them whenever a namespace or one of the ConfigMaps changes, and puts back what
// somebody changed. It runs in the elected replica only. All fields but Changed are
// required.
type TrustKeeper struct {
	// Cache has namespaces, and those ConfigMaps.
	Cache cache.Cache
	// Members lists the namespaces of the mesh.
	Members func(context.Context) ([]string, error)
	// Sync makes the roots what they should be and says what it changed.
	Sync func(ctx context.Context, namespaces []string) (changed []string, err error)
	// Changed says that Sync would write something else from now on.
	Changed <-chan struct{}
	Log     logr.Logger
}

// NeedLeaderElection is true: one replica writes.
func (k *TrustKeeper) NeedLeaderElection() bool { return true }

// Start keeps the trust until ctx ends.
func (k *TrustKeeper) Start(ctx context.Context) error {
	changes := newBurst()
	stop, err := changes.watch(ctx, k.Cache, &corev1.Namespace{}, &corev1.ConfigMap{})
	if err != nil {
		return err
	}
	defer stop()
	go changes.follow(ctx, k.Changed)
	changes.changed()
	for changes.gather(ctx) {
		namespaces, err := k.Members(ctx)
		if err == nil {
			var changed []string
			changed, err = k.Sync(ctx, namespaces)
			for _, what := range changed {
				k.Log.Info("trust roots written", "namespace", what)
			}
		}
		if err != nil && ctx.Err() == nil {
			k.Log.Error(err, "trust roots not kept everywhere")
			time.AfterFunc(again, changes.changed)
		}
	}
	return nil
}
