//go:build integration

package controller

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/outrigger-mesh/outrigger/e2e/cluster/local"
	"github.com/outrigger-mesh/outrigger/manifests"
)

// apiServer is shared by the tests, which run at once. Each has namespaces of its own
// and sees no others.
var apiServer *local.APIServer

func TestMain(m *testing.M) {
	flag.Parse()
	// Rotations wait most of their time, so there may be more of them than processors.
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if !given {
		if err := flag.Set("test.parallel", "8"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(withAPIServer(m))
}

func withAPIServer(m *testing.M) int {
	//nolint:forbidigo // there is no test yet whose context it could be
	return local.WithAPIServer(context.Background(), func(server *local.APIServer) int {
		apiServer = server
		return m.Run()
	})
}

// newScheme knows Kubernetes' own kinds, CRDs, and what is added.
func newScheme(t *testing.T, add ...func(*runtime.Scheme) error) *runtime.Scheme {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range append(add, clientscheme.AddToScheme, apiextensionsv1.AddToScheme) {
		must(t, add(scheme))
	}
	return scheme
}

// A part is what a test sees of an API server.
type part struct {
	t         *testing.T
	config    *rest.Config
	admin     client.Client
	informers cache.Cache // of the part's namespaces; they run
}

// newPart returns the part of an API server that has some namespaces, and what is in
// none.
func newPart(t *testing.T, config *rest.Config, scheme *runtime.Scheme, namespaces ...string) *part {
	t.Helper()
	p := &part{t: t, config: config}
	seen := map[string]cache.Config{}
	for _, name := range namespaces {
		seen[name] = cache.Config{}
	}
	var err error
	p.admin, err = client.New(config, client.Options{Scheme: scheme})
	must(t, err)
	p.informers, err = cache.New(config, cache.Options{Scheme: scheme, DefaultTransform: Trim, DefaultNamespaces: seen})
	must(t, err)
	t.Cleanup(p.run(p.informers.Start))
	return p
}

// names counts what unique returns.
var names atomic.Int64

// unique returns a name that no other test has.
func unique(name string) string { return fmt.Sprintf("%s-%d", name, names.Add(1)) }

// inMesh are the labels of a namespace that is in the mesh.
var inMesh = map[string]string{"outrigger.dev/inject": "enabled"}

// namespace makes one with its service account, which no controller does here.
func (p *part) namespace(name string, labels map[string]string) {
	p.t.Helper()
	p.create(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}},
		&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: name, Name: "default"}})
}

// create makes objects that no fault is expected of.
func (p *part) create(objects ...client.Object) {
	p.t.Helper()
	for _, o := range objects {
		if err := p.admin.Create(p.t.Context(), o); err != nil {
			p.t.Fatalf("create %T %s: %v", o, o.GetName(), err)
		}
	}
}

// run starts something that runs until the returned function is called.
func (p *part) run(start func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(p.t.Context())
	ended := make(chan error, 1)
	go func() { ended <- start(ctx) }()
	return sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			p.t.Error(err)
		}
	})
}

var kindsOfPolicy sync.Once

// installPolicy makes the API server serve the kinds of policy.
func (p *part) installPolicy() {
	p.t.Helper()
	kindsOfPolicy.Do(func() {
		entries, err := manifests.Chart.ReadDir("crds")
		must(p.t, err)
		for _, entry := range entries {
			text, err := manifests.Chart.ReadFile("crds/" + entry.Name())
			must(p.t, err)
			crd := &apiextensionsv1.CustomResourceDefinition{}
			must(p.t, yaml.UnmarshalStrict(text, crd))
			p.create(crd)
			eventually(p.t, crd.Name+" is served", func() error {
				if err := p.admin.Get(p.t.Context(), client.ObjectKeyFromObject(crd), crd); err != nil {
					return err
				}
				for _, c := range crd.Status.Conditions {
					if c.Type == apiextensionsv1.Established && c.Status == apiextensionsv1.ConditionTrue {
						return nil
					}
				}
				return errors.New("not established")
			})
		}
	})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	within(t, time.Minute, what, check)
}

// rotationTime is how long a rotation may take, whose steps last ten seconds each.
const rotationTime = 4 * time.Minute

func within(t *testing.T, patience time.Duration, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		<-tick.C
	}
}
