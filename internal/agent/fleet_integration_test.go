//go:build integration

package agent

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"golang.org/x/sync/errgroup"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/outrigger-mesh/outrigger/bootstrap"
	"github.com/outrigger-mesh/outrigger/e2e/cluster/local"
	"github.com/outrigger-mesh/outrigger/internal/controller"
	identities "github.com/outrigger-mesh/outrigger/internal/identity"
	"github.com/outrigger-mesh/outrigger/internal/rotation"
	"github.com/outrigger-mesh/outrigger/internal/server"
)

// fleetSize is how many pods start at once.
var fleetSize = flag.Int("pods", 200, "how many pods ask for their first certificate at once")

const (
	fleetSystem    = "fleet-system"
	fleetNamespace = "fleet"
	fleetPatience  = 4 * time.Minute
)

// A fleet is a real API server with pods that look injected, and a real outriggerd
// beside it, as far as certificates go: it reads through a cache, and its requests
// are counted and limited as in a cluster.
type fleet struct {
	api   *local.APIServer
	admin client.Client
	home  identities.Home
	rest  *rest.Config // outriggerd's
	asked *atomic.Int64
	pods  []corev1.Pod
}

// fleetIssuers are the issuers that are measured. Each is opened, and followed
// until the test ends.
func fleetIssuers() map[string]func(*testing.T, *fleet) identities.Issuer {
	return map[string]func(*testing.T, *fleet) identities.Issuer{
		"built-in":     fleetBuiltIn,
		"cert-manager": fleetCertManager,
		"Vault":        fleetVault,
	}
}

// TestFirstCertificatesOfAFleet has many pods ask for their first certificate at
// once, and tells how long the first, the median and the last of them took, and what
// the API server had to do. No time is asserted, but that everybody is served, and
// that outriggerd asks the API server a fixed number of times for each.
func TestFirstCertificatesOfAFleet(t *testing.T) {
	ctrllog.SetLogger(logr.Discard())
	for name, open := range fleetIssuers() {
		t.Run(name, func(t *testing.T) {
			f := newFleet(t)
			address := f.serve(t, open(t, f))
			before, own := f.load(t), f.asked.Load()
			times, retries := f.start(t, address)
			after, asked := f.load(t), f.asked.Load()-own
			slices.Sort(times)
			n := len(times)
			t.Logf("%s: first certificates of %d pods at once: first %s, median %s, last %s; %d retries; outriggerd made %.1f requests for each",
				name, n, round(times[0]), round(times[n/2]), round(times[n-1]), retries, float64(asked)/float64(n))
			t.Logf("%s: requests to the API server meanwhile: %s", name, difference(before, after))
			// A review of the token for each try, a CertificateRequest made and deleted,
			// and what watches and caches cost whatever the number of pods.
			if most := int64(3*n) + retries + 50; asked > most {
				t.Errorf("outriggerd made %d requests for %d certificates, want %d at most", asked, n, most)
			}
		})
	}
}

func round(d time.Duration) time.Duration { return d.Round(10 * time.Millisecond) }

// newFleet starts the API server and makes the pods.
func newFleet(t *testing.T) *fleet {
	t.Helper()
	f := &fleet{asked: &atomic.Int64{}, pods: make([]corev1.Pod, *fleetSize)}
	var err error
	f.api, err = local.StartAPIServer(t.Context(), t.TempDir())
	check(t, err)
	t.Cleanup(f.api.Stop)
	scheme := runtime.NewScheme()
	check(t, errors.Join(clientscheme.AddToScheme(scheme), cmapi.AddToScheme(scheme)))
	f.admin, err = client.New(f.api.Config, client.Options{Scheme: scheme})
	check(t, err)
	f.rest = rest.CopyConfig(f.api.Config)
	f.rest.QPS, f.rest.Burst = 100, 200 // as outriggerd has them
	f.rest.Wrap(func(next http.RoundTripper) http.RoundTripper { return counting{next, f.asked} })
	direct, err := client.New(f.rest, client.Options{Scheme: scheme})
	check(t, err)
	f.home = identities.Home{Client: direct, Namespace: fleetSystem, Mesh: "outrigger"}
	for name, labels := range map[string]map[string]string{fleetSystem: nil, fleetNamespace: {"outrigger.dev/inject": "enabled"}} {
		check(t, f.admin.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}))
	}
	check(t, f.admin.Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: fleetNamespace, Name: "app"}}))
	group := crew(t)
	for i := range f.pods {
		group.Go(func() error {
			always := corev1.ContainerRestartPolicyAlways
			f.pods[i] = corev1.Pod{
				ObjectMeta: metav1.ObjectMeta{Namespace: fleetNamespace, Name: fmt.Sprintf("app-%d", i)},
				Spec: corev1.PodSpec{
					ServiceAccountName: "app", NodeName: "nowhere",
					InitContainers: []corev1.Container{{Name: "outrigger-proxy", Image: "x", RestartPolicy: &always}},
					Containers:     []corev1.Container{{Name: "app", Image: "x"}},
				},
			}
			return f.admin.Create(t.Context(), &f.pods[i])
		})
	}
	check(t, group.Wait())
	return f
}

// counting counts requests.
type counting struct {
	http.RoundTripper
	n *atomic.Int64
}

func (c counting) RoundTrip(r *http.Request) (*http.Response, error) {
	c.n.Add(1)
	return c.RoundTripper.RoundTrip(r)
}

// crew is a group that does a few things at once.
func crew(t *testing.T) *errgroup.Group {
	t.Helper()
	group := &errgroup.Group{}
	group.SetLimit(16)
	return group
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// serve runs outriggerd's part with that issuer, and returns its address.
func (f *fleet) serve(t *testing.T, issuer identities.Issuer) string {
	t.Helper()
	pods, err := cache.New(f.rest, cache.Options{})
	check(t, err)
	for _, kind := range []client.Object{&corev1.Pod{}, &corev1.Namespace{}} {
		_, err := pods.GetInformer(t.Context(), kind, cache.BlockUntilSynced(false))
		check(t, err)
	}
	set, err := kubernetes.NewForConfig(f.rest)
	check(t, err)
	authority := identities.Opened{Authority: identities.Authority{Name: "measured", TrustDomain: "cluster.local"}, Issuer: issuer}
	authorities := &identities.Authorities{}
	authorities.Set(identities.Accepted{Signing: authority, Serving: authority, Trusted: []identities.Opened{authority}})
	serving := identities.NewServing(authorities, fleetSystem, time.Hour)
	lookup := controller.Lookup{Cached: pods, Live: f.home.Client, SystemNamespace: fleetSystem}
	verifier := identities.NewVerifier(identities.VerifierConfig{
		Audience: "outrigger", SystemNamespace: fleetSystem, Reviews: set.AuthenticationV1().TokenReviews(),
		Cached: pods, Live: f.home.Client, InMesh: lookup.InMesh,
	})
	xds := server.New(server.Config{
		Credentials: serving, Pods: verifier,
		Signer: &identities.Signer{Verifier: verifier, Authorities: authorities, Lifetime: time.Hour},
		Log:    logr.Discard(), Metrics: prometheus.NewRegistry(),
		// The pods of a cluster have an address each, these have one together.
		SignRate: 10_000, SignBurst: 10_000, AskRate: 10_000, AskBurst: 10_000, UnprovenPerAddress: 10_000, Unproven: 10_000,
	})
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	check(t, err)
	f.follow(t, pods.Start)
	f.follow(t, func(ctx context.Context) error { return serving.Run(ctx, logr.Discard()) })
	f.follow(t, func(ctx context.Context) error { return xds.Serve(ctx, listener) })
	if !pods.WaitForCacheSync(t.Context()) {
		t.Fatal("the cache is not filled")
	}
	for serving.Ready() != nil {
		select {
		case <-t.Context().Done():
			t.Fatal(serving.Ready())
		case <-time.After(20 * time.Millisecond):
		}
	}
	return listener.Addr().String()
}

// follow runs something until the test ends.
func (f *fleet) follow(t *testing.T, run func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// start starts all agents at once, and returns how long each took to have its
// certificate, and how often one of them had to ask again.
func (f *fleet) start(t *testing.T, address string) ([]time.Duration, int64) {
	t.Helper()
	var trust corev1.ConfigMap
	retries := &atomic.Int64{}
	agents := make([]*identity, len(f.pods))
	dir := t.TempDir()
	check(t, f.admin.Get(t.Context(), client.ObjectKey{Namespace: fleetSystem, Name: "fleet-roots"}, &trust))
	check(t, os.WriteFile(filepath.Join(dir, "ca.crt"), []byte(trust.Data["ca.crt"]), 0o600))
	set, err := kubernetes.NewForConfig(f.api.Config)
	check(t, err)
	group := crew(t)
	for i := range f.pods {
		group.Go(func() error {
			state := filepath.Join(dir, f.pods[i].Name)
			files := bootstrap.FilesIn(state)
			if err := os.MkdirAll(files.SecretsDir, 0o700); err != nil {
				return err
			}
			text, err := f.token(t.Context(), set, &f.pods[i])
			if err != nil {
				return err
			}
			tokenFile := filepath.Join(state, "token")
			agents[i] = newIdentity(Config{
				Settings: bootstrap.Settings{
					Mesh: "outrigger", TrustDomain: "cluster.local", ControlPlane: address,
					ControlPlaneID: "spiffe://cluster.local/ns/" + fleetSystem + "/sa/outriggerd",
				},
				Node:      bootstrap.Node{Namespace: fleetNamespace, Pod: f.pods[i].Name, UID: string(f.pods[i].UID), ServiceAccount: "app", StateDir: state},
				TokenFile: tokenFile, TrustFile: filepath.Join(dir, "ca.crt"),
				Log: slog.New(retryCounter{slog.DiscardHandler, retries}),
			}, files)
			return os.WriteFile(tokenFile, []byte(text), 0o600)
		})
	}
	check(t, group.Wait())

	ctx, cancel := context.WithTimeout(t.Context(), fleetPatience)
	defer cancel()
	times := make([]time.Duration, len(agents))
	kept, first := &errgroup.Group{}, &errgroup.Group{}
	began := time.Now()
	for i, agent := range agents {
		kept.Go(func() error { return agent.keep(ctx) })
		first.Go(func() error {
			select {
			case <-agent.first:
				times[i] = time.Since(began)
				return nil
			case <-ctx.Done():
				return fmt.Errorf("pod %d has no certificate after %s", i, fleetPatience)
			}
		})
	}
	err = first.Wait()
	cancel()
	check(t, errors.Join(err, kept.Wait()))
	return times, retries.Load()
}

func (f *fleet) token(ctx context.Context, set kubernetes.Interface, pod *corev1.Pod) (string, error) {
	answer, err := set.CoreV1().ServiceAccounts(fleetNamespace).CreateToken(ctx, "app", &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		Audiences: []string{"outrigger"}, ExpirationSeconds: new(int64(3600)),
		BoundObjectRef: &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: pod.Name, UID: pod.UID},
	}}, metav1.CreateOptions{})
	if err != nil {
		return "", err
	}
	return answer.Status.Token, nil
}

// retryCounter counts an agent's warnings, which are about certificates that it did
// not get.
type retryCounter struct {
	slog.Handler
	n *atomic.Int64
}

func (retryCounter) Enabled(context.Context, slog.Level) bool { return true }

func (r retryCounter) Handle(_ context.Context, record slog.Record) error {
	if record.Level == slog.LevelWarn {
		r.n.Add(1)
	}
	return nil
}

// publish puts the roots where the agents of the fleet find them.
func (f *fleet) publish(t *testing.T, issuer identities.Issuer) {
	t.Helper()
	var text strings.Builder
	for _, root := range issuer.Roots() {
		check(t, pem.Encode(&text, &pem.Block{Type: "CERTIFICATE", Bytes: root.Raw}))
	}
	check(t, f.admin.Create(t.Context(), &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: fleetSystem, Name: "fleet-roots"}, Data: map[string]string{"ca.crt": text.String()},
	}))
}

func fleetBuiltIn(t *testing.T, f *fleet) identities.Issuer {
	t.Helper()
	ca, err := identities.OpenCA(t.Context(), f.home, identities.CAConfig{TrustDomain: "cluster.local"})
	check(t, err)
	f.publish(t, ca)
	return ca
}

// fleetCertManager is an Issuer of kind CA whose key is in a Secret, answered by
// cert-manager's own controllers with as many workers as they have by default.
func fleetCertManager(t *testing.T, f *fleet) identities.Issuer {
	t.Helper()
	running, err := local.StartCertManager(t.Context(), f.api.Kubeconfig, t.TempDir())
	check(t, err)
	t.Cleanup(running.Stop)
	meta := func(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: fleetSystem, Name: name} }
	for _, object := range []client.Object{
		&cmapi.Issuer{ObjectMeta: meta("self-signed"), Spec: cmapi.IssuerSpec{IssuerConfig: cmapi.IssuerConfig{SelfSigned: &cmapi.SelfSignedIssuer{}}}},
		&cmapi.Certificate{ObjectMeta: meta("mesh"), Spec: cmapi.CertificateSpec{
			IsCA: true, CommonName: "Root of the user", SecretName: "mesh",
			PrivateKey: &cmapi.CertificatePrivateKey{Algorithm: cmapi.ECDSAKeyAlgorithm, Size: 256, RotationPolicy: cmapi.RotationPolicyAlways},
			IssuerRef:  cmmeta.IssuerReference{Name: "self-signed", Kind: "Issuer"},
		}},
		&cmapi.Issuer{ObjectMeta: meta("mesh"), Spec: cmapi.IssuerSpec{IssuerConfig: cmapi.IssuerConfig{CA: &cmapi.CAIssuer{SecretName: "mesh"}}}},
	} {
		check(t, f.admin.Create(t.Context(), object))
	}
	scheme := runtime.NewScheme()
	check(t, cmapi.AddToScheme(scheme))
	requests, err := client.NewWithWatch(f.rest, client.Options{Scheme: scheme})
	check(t, err)
	issuer, err := identities.OpenCertManager(t.Context(), identities.CertManagerConfig{
		Home: f.home, Client: requests, Authority: "measured", TrustDomain: "cluster.local",
		Issuer: cmmeta.IssuerReference{Name: "mesh", Kind: "Issuer", Group: "cert-manager.io"},
	})
	check(t, err)
	f.publish(t, issuer)
	f.follow(t, func(ctx context.Context) error { return issuer.Run(ctx, logr.Discard()) })
	if root := issuer.Roots()[0]; root.PublicKeyAlgorithm != x509.ECDSA {
		t.Fatalf("the root's key is %s", root.PublicKeyAlgorithm)
	}
	return issuer
}

// fleetVault is a role of a real Vault's PKI engine, asked with a token from a Secret.
func fleetVault(t *testing.T, f *fleet) identities.Issuer {
	t.Helper()
	running, err := local.StartVault(t.Context(), t.TempDir(), "127.0.0.1")
	check(t, err)
	t.Cleanup(running.Stop)
	check(t, running.MakePKI(t.Context(), "pki", "mesh", "cluster.local", nil))
	token, err := running.MakeToken(t.Context(), "pki", "mesh", nil)
	check(t, err)
	check(t, f.admin.Create(t.Context(), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: fleetSystem, Name: "vault"}, StringData: map[string]string{"token": token},
	}))
	issuer, err := identities.OpenVault(t.Context(), f.home, identities.VaultConfig{Authority: "measured", Vault: rotation.Vault{
		Address: running.Address, Mount: "pki", Role: "mesh", CABundle: string(running.CA),
		Token: &rotation.SecretKey{Secret: "vault", Key: "token"},
	}})
	check(t, err)
	f.publish(t, issuer)
	f.follow(t, func(ctx context.Context) error { return issuer.Run(ctx, logr.Discard()) })
	return issuer
}

// load returns how many requests the API server has answered, by verb and resource.
func (f *fleet) load(t *testing.T) map[string]float64 {
	t.Helper()
	set, err := kubernetes.NewForConfig(f.api.Config)
	check(t, err)
	text, err := set.RESTClient().Get().AbsPath("/metrics").DoRaw(t.Context())
	check(t, err)
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(string(text)))
	check(t, err)
	sums := map[string]float64{}
	for _, metric := range families["apiserver_request_total"].GetMetric() {
		labels := map[string]string{}
		for _, pair := range metric.GetLabel() {
			labels[pair.GetName()] = pair.GetValue()
		}
		resource := labels["resource"]
		if labels["subresource"] != "" {
			resource += "/" + labels["subresource"]
		}
		sums[labels["verb"]+" "+resource] += metric.GetCounter().GetValue()
	}
	return sums
}

// difference says what was asked between two loads, most first.
func difference(before, after map[string]float64) string {
	type line struct {
		what string
		n    float64
	}
	var lines []line
	total := 0.0
	for what, n := range after {
		// The agents' tokens are the kubelets' affair in a cluster.
		if n -= before[what]; n > 0 && !strings.Contains(what, "serviceaccounts/token") {
			lines = append(lines, line{what, n})
			total += n
		}
	}
	slices.SortFunc(lines, func(a, b line) int {
		if a.n != b.n {
			return int(b.n - a.n)
		}
		return strings.Compare(a.what, b.what)
	})
	text := []string{fmt.Sprintf("%.0f in all", total)}
	for _, l := range lines[:min(len(lines), 8)] {
		text = append(text, fmt.Sprintf("%s %.0f", l.what, l.n))
	}
	return strings.Join(text, ", ")
}
