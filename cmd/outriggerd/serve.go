package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/discovery"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	authenticationv1 "k8s.io/client-go/kubernetes/typed/authentication/v1"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/outrigger-mesh/outrigger/internal/api"
	"github.com/outrigger-mesh/outrigger/internal/controller"
	"github.com/outrigger-mesh/outrigger/internal/identity"
	"github.com/outrigger-mesh/outrigger/internal/ingest"
	"github.com/outrigger-mesh/outrigger/internal/mesh"
	"github.com/outrigger-mesh/outrigger/internal/server"
)

const (
	// headerTimeout bounds how long a client may take to say what it wants, and
	// readTimeout how long to say all of it: bodies are held in memory.
	headerTimeout = 10 * time.Second
	readTimeout   = 30 * time.Second
	// idleTimeout is longer than the API server keeps a connection that it does not
	// use. If we closed it first, a request that is already on its way would fail.
	idleTimeout = 5 * time.Minute
	// leaving is how long a replica that was told to end goes on serving. The API
	// server and proxies hear of its end later than it does, and an admission request
	// that finds nobody is a pod that is refused.
	leaving = 8 * time.Second
)

// plane is the control plane's parts while they are wired.
type plane struct {
	cfg    config
	log    logr.Logger
	mgr    manager.Manager
	rest   *rest.Config  // with our own limits
	direct client.Client // not a cache
	lookup controller.Lookup
	home   identity.Home
	trust  identity.Trust
	bundle string // name of the ClusterTrustBundle that pods mount; empty for the ConfigMap
	roots  rootsSignals
	xds    *server.Server
	served []api.Served // the kinds of policy, as the cluster has them
	// authorities are those of the moment; none until one is open.
	authorities  identity.Authorities
	follower     identity.Follower
	serving      *identity.Serving
	acknowledged generations
	// ready are what must be fulfilled before this replica is sent anything.
	ready []func() error
}

// serve wires the parts and runs them until ctx ends and, after that, until
// nobody is sent here any more.
func serve(ctx context.Context, cfg config, log logr.Logger) error {
	restConfig, err := ctrl.GetConfig()
	if err != nil {
		return fmt.Errorf("find the cluster: %w", err)
	}
	p := &plane{cfg: cfg, log: log, roots: newRootsSignals()}
	for _, wire := range []func(context.Context, *rest.Config) error{p.wireManager, p.wireIdentity, p.wireServer, p.wirePublisher, p.wireWebhook, p.wireHealth} {
		if err := wire(ctx, restConfig); err != nil {
			return err
		}
	}
	running, stop := outlast(ctx, leaving)
	defer stop()
	return p.mgr.Start(running)
}

// outlast returns a context that ends some time after ctx does.
func outlast(ctx context.Context, by time.Duration) (context.Context, context.CancelFunc) {
	longer, cancel := context.WithCancel(context.WithoutCancel(ctx))
	context.AfterFunc(ctx, func() { time.AfterFunc(by, cancel) })
	return longer, cancel
}

// everywhere runs in every replica; whatever is added to the manager otherwise
// runs in the elected one.
type everywhere func(context.Context) error

func (e everywhere) Start(ctx context.Context) error { return e(ctx) }

func (everywhere) NeedLeaderElection() bool { return false }

// newScheme knows the kinds of Kubernetes, and those of SMI in the versions that the
// cluster has.
func newScheme(served []api.Served) (*runtime.Scheme, error) {
	scheme := runtime.NewScheme()
	if err := clientscheme.AddToScheme(scheme); err != nil {
		return nil, fmt.Errorf("register kinds: %w", err)
	}
	api.AddServed(scheme, served)
	return scheme, nil
}

func (p *plane) wireManager(_ context.Context, restConfig *rest.Config) error {
	restConfig.QPS, restConfig.Burst = 100, 200
	p.rest = restConfig
	asks, err := discovery.NewDiscoveryClientForConfig(restConfig)
	if err != nil {
		return fmt.Errorf("connect to the API server: %w", err)
	}
	if p.served, err = api.Discover(asks.ServerResourcesForGroupVersion, apierrors.IsNotFound); err != nil {
		return err
	}
	for _, kind := range p.served {
		p.log.Info("policy is read", "kind", kind.Name, "version", kind.Version, "status", kind.Status)
	}
	scheme, err := newScheme(p.served)
	if err != nil {
		return err
	}
	p.mgr, err = ctrl.NewManager(restConfig, ctrl.Options{
		Scheme: scheme, Logger: p.log,
		Cache: cache.Options{
			DefaultTransform: controller.Trim,
			// Of ConfigMaps only those with the roots, and its own, which is all it may read.
			ByObject: map[client.Object]cache.ByObject{
				&corev1.ConfigMap{}: {Namespaces: map[string]cache.Config{
					cache.AllNamespaces: {FieldSelector: fields.OneTermEqualSelector("metadata.name", mesh.TrustConfigMap)},
					p.cfg.namespace:     {},
				}},
			},
		},
		Metrics:                 metricsserver.Options{BindAddress: "0"}, // served with health, below
		LeaderElection:          true,
		LeaderElectionID:        "outriggerd",
		LeaderElectionNamespace: p.cfg.namespace,
		// The next replica may take over at once when this one goes in order.
		LeaderElectionReleaseOnCancel: true,
	})
	if err != nil {
		return fmt.Errorf("prepare the manager: %w", err)
	}
	if p.direct, err = client.New(restConfig, client.Options{Scheme: scheme}); err != nil {
		return fmt.Errorf("connect to the API server: %w", err)
	}
	p.lookup = controller.Lookup{Cached: p.mgr.GetCache(), Live: p.direct, OSMMesh: p.cfg.osmMesh, SystemNamespace: p.cfg.namespace}
	return nil
}

// wireServer serves xDS and signing.
func (p *plane) wireServer(_ context.Context, restConfig *rest.Config) error {
	reviews, err := authenticationv1.NewForConfig(restConfig)
	if err != nil {
		return fmt.Errorf("prepare token reviews: %w", err)
	}
	verifier := identity.NewVerifier(identity.VerifierConfig{
		Audience: p.cfg.mesh, SystemNamespace: p.cfg.namespace, Reviews: reviews.TokenReviews(),
		Cached: p.mgr.GetCache(), Live: p.direct, InMesh: p.lookup.InMesh,
		MayNameNoPod: p.authorities.MayNameNoPod,
	})
	p.xds = server.New(server.Config{
		Credentials: p.serving, Pods: verifier,
		Signer: &identity.Signer{Verifier: verifier, Authorities: &p.authorities, Lifetime: p.cfg.leaf, Declined: p.declined},
		Log:    p.log.WithName("xds"), Metrics: metrics.Registry,
	})
	return errors.Join(
		p.mgr.Add(everywhere(func(ctx context.Context) error {
			listener, err := new(net.ListenConfig).Listen(ctx, "tcp", p.cfg.xdsAddress)
			if err != nil {
				return fmt.Errorf("listen for proxies: %w", err)
			}
			return p.xds.Serve(ctx, listener)
		})),
		p.mgr.Add(everywhere(func(ctx context.Context) error {
			return serveHTTP(ctx, p.cfg.debugAddress, p.xds.Debug(), nil)
		})),
	)
}

// wirePublisher follows the cluster, and tells users what cannot be honoured.
func (p *plane) wirePublisher(_ context.Context, _ *rest.Config) error {
	settings, err := p.cfg.injector(p.bundle)
	if err != nil {
		return err
	}
	ranges, err := p.cfg.rangeKinds(p.mgr.GetRESTMapper())
	if err != nil {
		return err
	}
	reporter := controller.NewReporter(controller.Reporter{
		Cache: p.mgr.GetCache(), Owners: p.direct, Events: p.mgr.GetEventRecorder("outriggerd"),
		Injector: settings, Log: p.log.WithName("reporter"),
	})
	statuses := controller.NewStatusWriter(controller.StatusWriter{
		Cache: p.mgr.GetCache(), Client: p.direct, Members: p.lookup.Members, Served: p.served, Log: p.log.WithName("status"),
	})
	meshConfig := &controller.MeshConfigReader{
		Client: p.direct, Namespace: p.cfg.namespace, Log: p.log.WithName("meshconfig"),
		Changed: func() { notify(p.roots.publisher) },
	}
	publisher := controller.NewPublisher(controller.PublisherConfig{
		Cache: p.mgr.GetCache(),
		Options: func(ctx context.Context) (ingest.Options, error) {
			accepted, err := p.authorities.Now()
			if err != nil {
				return ingest.Options{}, err
			}
			cidrs, err := p.cfg.ranges(ctx, p.mgr.GetCache())
			if err != nil {
				return ingest.Options{}, err
			}
			opts := p.cfg.ingest(cidrs, accepted.TrustDomains())
			p.acknowledged.published(trustOf(opts).Key, accepted.Generation)
			return opts, nil
		},
		Also:       ranges,
		MeshConfig: meshConfig.Now,
		Changed:    p.roots.publisher,
		Publish:    func(ctx context.Context, snap *mesh.Snapshot) error { return p.xds.Publish(ctx, snap) },
		Problems: func(problems []ingest.Problem) {
			reporter.Problems(problems)
			statuses.Problems(problems)
		},
		Log: p.log.WithName("publisher"), Metrics: metrics.Registry,
	})
	p.ready = append(p.ready, func() error {
		if !publisher.Ready() {
			return errors.New("no snapshot was published yet")
		}
		return nil
	})
	return errors.Join(p.mgr.Add(reporter), p.mgr.Add(statuses), p.mgr.Add(meshConfig), p.mgr.Add(publisher))
}

// serveHTTP serves handler at an address until ctx ends, with TLS when there is a
// certificate for it.
func serveHTTP(ctx context.Context, address string, handler http.Handler, secure *tls.Config) error {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("listen at %s: %w", address, err)
	}
	if secure != nil {
		listener = tls.NewListener(listener, secure)
	}
	return serveOn(ctx, listener, handler)
}

// serveOn serves until ctx ends. Requests that are under way then are answered.
func serveOn(ctx context.Context, listener net.Listener, handler http.Handler) error {
	calls := context.WithoutCancel(ctx)
	web := &http.Server{
		Handler: handler, ReadHeaderTimeout: headerTimeout, ReadTimeout: readTimeout, IdleTimeout: idleTimeout,
		BaseContext: func(net.Listener) context.Context { return calls },
	}
	stopped := make(chan error, 1)
	go func() {
		<-ctx.Done()
		closing, cancel := context.WithTimeout(calls, headerTimeout)
		defer cancel()
		stopped <- web.Shutdown(closing)
	}()
	if err := web.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve at %s: %w", listener.Addr(), err)
	}
	return <-stopped
}

// sendAway answers as handler does and, from the end of ctx on, has each client
// make its next connection elsewhere: one that it keeps leads here for as long as
// this replica lives, whatever the Service says by then.
func sendAway(ctx context.Context, handler http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if ctx.Err() != nil {
			w.Header().Set("Connection", "close")
		}
		handler.ServeHTTP(w, r)
	})
}
