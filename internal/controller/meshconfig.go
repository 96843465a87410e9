package controller

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/go-logr/logr"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/outrigger-mesh/outrigger/internal/ingest"
)

// meshConfigInterval is how often the MeshConfig is looked at. Most clusters have no
// such kind, and one that comes later must count, so there is nothing to watch.
const meshConfigInterval = 30 * time.Second

// At the start it is looked for so often, so long after each other, before the mesh
// goes on without one that cannot be read: OSM's kind may have a conversion webhook
// that is gone.
const (
	firstLooks    = 5
	firstInterval = 2 * time.Second
)

// A MeshConfigReader reads OSM's MeshConfig in the system namespace, where the cluster
// has that kind. It runs in every replica.
type MeshConfigReader struct {
	// Client must not be a cache: the kind may come at any time.
	Client    client.Client
	Namespace string
	// Changed is told of each change.
	Changed func()
	Log     logr.Logger

	mu     sync.Mutex
	failed int // looks, before the first that did not
	looked bool
	config *unstructured.Unstructured
}

// Now returns the MeshConfig, or nil where there is none or it cannot be read; an
// error before that is known, so that proxies are not given one thing and then
// another.
func (r *MeshConfigReader) Now() (*unstructured.Unstructured, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.looked {
		return nil, errors.New("the MeshConfig was not looked for yet")
	}
	return r.config, nil
}

// NeedLeaderElection is false: every replica serves proxies.
func (r *MeshConfigReader) NeedLeaderElection() bool { return false }

// Start reads until ctx ends. One that cannot be read stays what it was.
func (r *MeshConfigReader) Start(ctx context.Context) error {
	tick := time.NewTimer(0)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := r.look(ctx); err != nil && ctx.Err() == nil {
			r.Log.Error(err, "the MeshConfig stays what it was")
		}
		if _, err := r.Now(); err != nil {
			tick.Reset(firstInterval)
		} else {
			tick.Reset(meshConfigInterval)
		}
	}
}

// look reads once.
func (r *MeshConfigReader) look(ctx context.Context) error {
	config := &unstructured.Unstructured{}
	config.SetAPIVersion(ingest.MeshConfigAPIVersion)
	config.SetKind(ingest.MeshConfigKind)
	err := r.Client.Get(ctx, client.ObjectKey{Namespace: r.Namespace, Name: ingest.MeshConfigName}, config)
	if meta.IsNoMatchError(err) || apierrors.IsNotFound(err) {
		config, err = nil, nil
	}
	r.mu.Lock()
	if err != nil {
		config = r.config
		r.failed++
	}
	known := r.looked || err == nil || r.failed >= firstLooks
	changed := known && (!r.looked || version(r.config) != version(config))
	r.looked, r.config = known, config
	r.mu.Unlock()
	if changed {
		r.Changed()
	}
	if err != nil {
		return fmt.Errorf("read MeshConfig %s/%s: %w", r.Namespace, ingest.MeshConfigName, err)
	}
	return nil
}

// version tells two reads of an object apart; empty for none.
func version(u *unstructured.Unstructured) string {
	if u == nil {
		return ""
	}
	return string(u.GetUID()) + " " + u.GetResourceVersion()
}
