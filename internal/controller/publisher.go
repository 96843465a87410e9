package controller

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	accessv1alpha3 "github.com/outrigger-mesh/outrigger/internal/api/access/v1alpha3"
	specsv1alpha4 "github.com/outrigger-mesh/outrigger/internal/api/specs/v1alpha4"
	splitv1alpha4 "github.com/outrigger-mesh/outrigger/internal/api/split/v1alpha4"
	"github.com/outrigger-mesh/outrigger/internal/ingest"
	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

// A PublisherConfig says what a Publisher reads and where it publishes to. All
// fields but Also, MeshConfig and Changed are required.
type PublisherConfig struct {
	Cache cache.Cache
	// Options are read at each build; roots and service ranges change while the
	// mesh runs. An error means that nothing can be published now.
	Options func(context.Context) (ingest.Options, error)
	// Also are further kinds whose changes matter, because Options reads them.
	Also []client.Object
	// MeshConfig returns OSM's, or nil where there is none. An error means that
	// nothing can be published now.
	MeshConfig func() (*unstructured.Unstructured, error)
	// Changed says that Options or MeshConfig would return something else from now on.
	Changed <-chan struct{}
	// Publish takes the new snapshot. Its error is logged; it must keep serving
	// what is good.
	Publish func(context.Context, *mesh.Snapshot) error
	// Problems takes what users wrote that cannot be honoured, after each build.
	Problems func([]ingest.Problem)
	Log      logr.Logger
	Metrics  prometheus.Registerer
}

// A Publisher turns the cluster into snapshots until its context ends.
type Publisher struct {
	cfg       PublisherConfig
	published atomic.Bool
	version   string
	build     prometheus.Histogram
	problems  *prometheus.GaugeVec
}

// NewPublisher returns a Publisher that is to be started.
func NewPublisher(cfg PublisherConfig) *Publisher {
	p := &Publisher{
		cfg: cfg,
		build: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "outrigger_snapshot_build_seconds",
			Help:    "Time to read the caches and build a snapshot.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 12),
		}),
		problems: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "outrigger_problems",
			Help: "Objects that cannot be honoured as written, by reason.",
		}, []string{"reason"}),
	}
	cfg.Metrics.MustRegister(p.build, p.problems)
	return p
}

// NeedLeaderElection is false: every replica serves proxies.
func (p *Publisher) NeedLeaderElection() bool { return false }

// Ready reports whether a snapshot was published.
func (p *Publisher) Ready() bool { return p.published.Load() }

// Watched lists the kinds whose changes lead to a new snapshot.
func Watched() []client.Object {
	return []client.Object{
		&corev1.Namespace{}, nodes(), &corev1.Pod{}, &corev1.Service{}, &discoveryv1.EndpointSlice{},
		&accessv1alpha3.TrafficTarget{}, &specsv1alpha4.HTTPRouteGroup{}, &specsv1alpha4.TCPRoute{}, &splitv1alpha4.TrafficSplit{},
	}
}

// Start watches and publishes until ctx ends.
func (p *Publisher) Start(ctx context.Context) error {
	changes := newBurst()
	stop, err := changes.watch(ctx, p.cfg.Cache, slices.Concat(Watched(), p.cfg.Also)...)
	if err != nil {
		return err
	}
	defer stop()
	if !p.cfg.Cache.WaitForCacheSync(ctx) {
		return ctx.Err()
	}
	go changes.follow(ctx, p.cfg.Changed)
	changes.changed()
	for changes.gather(ctx) {
		if err := p.publish(ctx); err != nil {
			p.cfg.Log.Error(err, "snapshot not published; proxies keep the last one")
			// What was taken away must not stay allowed until something else changes.
			time.AfterFunc(again, changes.changed)
		}
	}
	return nil
}

// publish reads the caches once and hands on what they mean.
func (p *Publisher) publish(ctx context.Context) (err error) {
	// Build's own faults must not take the control plane down: the last good
	// snapshot stays in force.
	defer func() {
		if fault := recover(); fault != nil {
			err = fmt.Errorf("build snapshot: %v", fault)
		}
	}()
	started := time.Now()
	opts, err := p.cfg.Options(ctx)
	if err != nil {
		return fmt.Errorf("read the mesh's settings: %w", err)
	}
	objs, err := Objects(ctx, p.cfg.Cache)
	if err != nil {
		return err
	}
	if p.cfg.MeshConfig != nil {
		config, err := p.cfg.MeshConfig()
		if err != nil {
			return err
		}
		if config != nil {
			objs.MeshConfigs = append(objs.MeshConfigs, config)
		}
	}
	snap, problems := ingest.Build(objs, opts)
	p.build.Observe(time.Since(started).Seconds())
	p.count(problems)
	p.cfg.Problems(problems)
	if snap.Version() == p.version {
		return nil
	}
	err = p.cfg.Publish(ctx, snap)
	p.version = snap.Version()
	p.published.Store(true)
	return err
}

func (p *Publisher) count(problems []ingest.Problem) {
	p.problems.Reset()
	for _, problem := range problems {
		p.problems.WithLabelValues(string(problem.Reason)).Inc()
	}
}

// Objects lists everything that Build reads. The objects of a cache stay its own:
// do not change them.
func Objects(ctx context.Context, from client.Reader) (ingest.Objects, error) {
	var objs ingest.Objects
	for _, read := range []func() error{
		func() error { return list(ctx, from, &corev1.NamespaceList{}, &objs.Namespaces) },
		func() error { return listNodes(ctx, from, &objs.Nodes) },
		func() error { return list(ctx, from, &corev1.PodList{}, &objs.Pods) },
		func() error { return list(ctx, from, &corev1.ServiceList{}, &objs.Services) },
		func() error { return list(ctx, from, &discoveryv1.EndpointSliceList{}, &objs.EndpointSlices) },
		func() error { return list(ctx, from, &accessv1alpha3.TrafficTargetList{}, &objs.TrafficTargets) },
		func() error {
			return list(ctx, from, &specsv1alpha4.HTTPRouteGroupList{}, &objs.HTTPRouteGroups)
		},
		func() error { return list(ctx, from, &specsv1alpha4.TCPRouteList{}, &objs.TCPRoutes) },
		func() error { return list(ctx, from, &splitv1alpha4.TrafficSplitList{}, &objs.TrafficSplits) },
	} {
		if err := read(); err != nil {
			return ingest.Objects{}, err
		}
	}
	return objs, nil
}

// nodes are watched by their metadata only, which is all that the mesh reads: their
// status is large and changes for ever.
func nodes() *metav1.PartialObjectMetadata {
	return &metav1.PartialObjectMetadata{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Node"}}
}

// listNodes reads the labels of all nodes into found.
func listNodes(ctx context.Context, from client.Reader, found *[]*corev1.Node) error {
	names := &metav1.PartialObjectMetadataList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "NodeList"}}
	if err := from.List(ctx, names, client.UnsafeDisableDeepCopy); err != nil {
		return fmt.Errorf("list nodes: %w", err)
	}
	for i := range names.Items {
		*found = append(*found, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: names.Items[i].Name, Labels: names.Items[i].Labels}})
	}
	return nil
}

// list reads all objects of one kind into found, without copying them.
func list[O client.Object](ctx context.Context, from client.Reader, kind client.ObjectList, found *[]O) error {
	if err := from.List(ctx, kind, client.UnsafeDisableDeepCopy); err != nil {
		return fmt.Errorf("list %T: %w", kind, err)
	}
	items, err := meta.ExtractList(kind)
	if err != nil {
		return fmt.Errorf("list %T: %w", kind, err)
	}
	*found = make([]O, 0, len(items))
	for _, item := range items {
		object, ok := item.(O)
		if !ok {
			return fmt.Errorf("list %T: it holds a %T", kind, item)
		}
		*found = append(*found, object)
	}
	return nil
}
