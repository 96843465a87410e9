//go:build integration

package identity

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	"github.com/go-logr/logr"
	"google.golang.org/grpc/codes"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/outrigger-mesh/outrigger/e2e/cluster/local"
	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

// chosen are the chart's values that make cert-manager the issuer.
var chosen = []string{
	"certificates.issuer=certManager", "certificates.certManager.issuer=mesh", "certificates.certManager.rootsConfigMap=roots",
}

// startCertManager runs cert-manager's own controllers until the test ends.
func startCertManager(t *testing.T, flags ...string) {
	t.Helper()
	dir := t.TempDir()
	running, err := local.StartCertManager(t.Context(), apiServer.Kubeconfig, dir, flags...)
	must(t, err)
	t.Cleanup(func() {
		running.Stop()
		if t.Failed() {
			text, _ := os.ReadFile(filepath.Join(dir, "cert-manager.log"))
			t.Logf("cert-manager's last words:\n%s", text[max(0, len(text)-4000):])
		}
	})
}

func certManagerClient(t *testing.T, config *rest.Config) client.WithWatch {
	t.Helper()
	scheme := runtime.NewScheme()
	must(t, errors.Join(cmapi.AddToScheme(scheme), corev1.AddToScheme(scheme)))
	c, err := client.NewWithWatch(config, client.Options{Scheme: scheme})
	must(t, err)
	return c
}

// newIssuer makes an Issuer mesh in a namespace, of kind CA, whose authority is a
// Certificate of a SelfSigned one.
func newIssuer(t *testing.T, namespace string) {
	t.Helper()
	c := certManagerClient(t, apiServer.Config)
	meta := func(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: namespace, Name: name} }
	ca := cmapi.IssuerConfig{CA: &cmapi.CAIssuer{SecretName: "mesh-root"}}
	for _, object := range []client.Object{
		&cmapi.Issuer{ObjectMeta: meta("self-signed"), Spec: cmapi.IssuerSpec{IssuerConfig: cmapi.IssuerConfig{SelfSigned: &cmapi.SelfSignedIssuer{}}}},
		&cmapi.Certificate{ObjectMeta: meta("mesh-root"), Spec: cmapi.CertificateSpec{
			IsCA: true, CommonName: "Root of the user", SecretName: "mesh-root",
			PrivateKey: &cmapi.CertificatePrivateKey{Algorithm: cmapi.ECDSAKeyAlgorithm, Size: 256, RotationPolicy: cmapi.RotationPolicyAlways},
			IssuerRef:  cmmeta.IssuerReference{Name: "self-signed", Kind: "Issuer"},
		}},
		&cmapi.Issuer{ObjectMeta: meta("mesh"), Spec: cmapi.IssuerSpec{IssuerConfig: ca}},
	} {
		must(t, c.Create(t.Context(), object))
	}
}

// meshIssuer is whom a CertManager asks.
type meshIssuer struct {
	home   Home
	config *rest.Config
	cfg    CertManagerConfig
}

func newMeshIssuer(t *testing.T, name string) meshIssuer {
	t.Helper()
	must(t, local.InstallCertManagerKinds(t.Context(), apiServer.Kubeconfig))
	home, _ := newHome(t, name, chosen...)
	config := outriggerd(name)
	return meshIssuer{home: home, config: config, cfg: CertManagerConfig{
		Home: home, Client: certManagerClient(t, config), Authority: "cert-manager-mesh", TrustDomain: trustDomain,
		Issuer: cmmeta.IssuerReference{Name: "mesh", Kind: "Issuer", Group: "cert-manager.io"},
	}}
}

// open opens the issuer and runs it.
func (m meshIssuer) open(t *testing.T) *CertManager {
	t.Helper()
	c, err := OpenCertManager(t.Context(), m.cfg)
	must(t, err)
	run(t, c)
	return c
}

func run(t *testing.T, c *CertManager) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx, logr.Discard()) }()
	t.Cleanup(func() {
		cancel()
		must(t, <-ended)
	})
}

// issueTo asks for a certificate for a service account, for so long at most.
func issueTo(t *testing.T, c *CertManager, account string, patience time.Duration) ([]*x509.Certificate, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	request, template := asked(t, account)
	return issue(ctx, c, request, template)
}

func asked(t *testing.T, account string) (*x509.CertificateRequest, Template) {
	t.Helper()
	id := mesh.Identity{Namespace: "shop", ServiceAccount: account}
	request, err := parseRequest(csr(t, id, "uid-of-"+account, p256(t), nil))
	must(t, err)
	template := newTemplate(id, trustDomain, "uid-of-"+account, 10*time.Minute)
	template.MayNameNoPod = true
	return request, template
}

// requests are the mesh's, as they are now.
func requests(t *testing.T, namespace string) []cmapi.CertificateRequest {
	t.Helper()
	var list cmapi.CertificateRequestList
	must(t, certManagerClient(t, apiServer.Config).List(t.Context(), &list, client.InNamespace(namespace), client.HasLabels{RequestLabel}))
	return list.Items
}

func wantNoRequests(t *testing.T, namespace string) {
	t.Helper()
	if left := requests(t, namespace); len(left) > 0 {
		t.Errorf("%d CertificateRequests were left behind", len(left))
	}
}

func TestCertManagerSigns(t *testing.T) {
	startCertManager(t)
	const name = "cm-signs"
	m := newMeshIssuer(t, name)
	newIssuer(t, name)
	c := m.open(t)
	if roots := c.Roots(); len(roots) != 1 || roots[0].Subject.CommonName != "Root of the user" {
		t.Fatalf("the roots are %v", roots)
	}

	// A pod's own request, as its agent makes it.
	set := kubernetesClient(t, m.config)
	namespace(t, "cm-signs-shop", map[string]string{meshLabel: "enabled"})
	account(t, "cm-signs-shop", "cart")
	p := pod(t, "cm-signs-shop", "cart-1", "cart", nil)
	wantSigned(t, signerOf(m.home, set, c), token(t, "cm-signs-shop", "cart", name, p), p)

	chain, err := issueTo(t, c, "short", 30*time.Second)
	must(t, err)
	if life := chain[0].NotAfter.Sub(chain[0].NotBefore); life != 10*time.Minute {
		t.Errorf("asked for 10 minutes, the certificate is good for %s", life)
	}
	if usage := chain[0].ExtKeyUsage; len(usage) != 2 || chain[0].KeyUsage != x509.KeyUsageDigitalSignature {
		t.Errorf("the usages are %v %v; want digital signature, client and server auth", chain[0].KeyUsage, usage)
	}
	wantNoRequests(t, name)

	// The root is recorded, so nobody is asked when the issuer is opened again.
	again := m.cfg
	again.Client = nil
	second, err := OpenCertManager(t.Context(), again)
	must(t, err)
	if !second.Roots()[0].Equal(c.Roots()[0]) {
		t.Error("another replica has another root")
	}
	// Nor may a slip of the user's take the pods' roots away.
	again.Known, again.Roots = Known{Roots: c.Roots()}, string(encodeCertificates(testCA(t).Roots()...))
	if _, err := OpenCertManager(t.Context(), again); !errors.Is(err, ErrNoCA) {
		t.Errorf("opened with roots that no pod knows: %v", err)
	}
}

// A root that the issuer changes to by itself is not taken up.
func TestCertManagerChangesItsRoot(t *testing.T) {
	startCertManager(t)
	const name = "cm-changes"
	m := newMeshIssuer(t, name)
	newIssuer(t, name)
	c := m.open(t)
	api := certManagerClient(t, apiServer.Config)
	var secret corev1.Secret
	must(t, api.Get(t.Context(), client.ObjectKey{Namespace: name, Name: "mesh-root"}, &secret))
	must(t, api.Delete(t.Context(), &secret)) // cert-manager makes another, with another key
	before := secret.UID
	eventually(t, "another root", func() error {
		if err := api.Get(t.Context(), client.ObjectKey{Namespace: name, Name: "mesh-root"}, &secret); err != nil {
			return err
		}
		if secret.UID == before || len(secret.Data["tls.crt"]) == 0 {
			return errors.New("not yet")
		}
		return nil
	})
	// cert-manager's own cache may be a moment behind.
	eventually(t, "a certificate below the other root", func() error {
		_, err := issueTo(t, c, "cart", 30*time.Second)
		if err == nil {
			return errors.New("it is signed, and leads to the root of before")
		}
		if !strings.Contains(err.Error(), "unknown authority") {
			return err
		}
		return nil
	})

	// The user announces it.
	text := string(encodeCertificates(c.Roots()...)) + string(secret.Data["ca.crt"])
	must(t, api.Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: name, Name: "roots"}, Data: map[string]string{TrustKey: text}}))
	m.cfg.RootsConfigMap = "roots"
	changed := 0
	m.cfg.Changed = func() { changed++ }
	c = m.open(t)
	if n := len(c.Roots()); n != 2 {
		t.Errorf("%d roots, want both", n)
	}
	_, err := issueTo(t, c, "cart", 30*time.Second)
	must(t, err)

	replace := func(text string) {
		m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: name, Name: "roots"}, Data: map[string]string{TrustKey: text}}
		must(t, api.Update(t.Context(), m))
	}
	replace(string(secret.Data["ca.crt"]))
	must(t, c.reload(t.Context(), logr.Discard()))
	if len(c.Roots()) != 1 || changed != 1 {
		t.Errorf("%d roots, told %d times; want one root, told once", len(c.Roots()), changed)
	}
	replace(string(encodeCertificates(testCA(t).Roots()...)))
	if err := c.reload(t.Context(), logr.Discard()); err == nil || !strings.Contains(err.Error(), "none of the roots of before") {
		t.Errorf("a root that no pod trusts is taken up: %v", err)
	}
	replace("nonsense")
	if err := c.reload(t.Context(), logr.Discard()); err == nil {
		t.Error("nonsense is taken up")
	}
	_, err = issueTo(t, c, "cart", 30*time.Second)
	must(t, err)
}

// Whether a request is approved is up to the cluster's policy.
func TestCertManagerPolicy(t *testing.T) {
	startCertManager(t, "--without=certificaterequests-approver")
	const name = "cm-policy"
	m := newMeshIssuer(t, name)
	m.cfg.Roots = string(encodeCertificates(testCA(t).Roots()...))
	c := m.open(t)

	_, err := issueTo(t, c, "cart", 2*time.Second)
	if err == nil || !strings.Contains(err.Error(), "neither approved nor denied") {
		t.Errorf("without anybody who approves: %v", err)
	}
	wantNoRequests(t, name)

	denied := make(chan error, 1)
	go func() {
		_, err := issueTo(t, c, "cart", 30*time.Second)
		denied <- err
	}()
	decide(t, name, cmapi.CertificateRequestConditionDenied, "policy.example.com", "no certificates on Sundays")
	err = <-denied
	wantRefusal(t, "the policy says no", errors.Unwrap(err), codes.PermissionDenied, ReasonDenied)
	if !strings.Contains(err.Error(), "policy.example.com: no certificates on Sundays") {
		t.Errorf("the error does not say what the policy says: %v", err)
	}
	wantNoRequests(t, name)
}

// decide waits for the one request of a mesh and writes a condition of it, as a
// policy does.
func decide(t *testing.T, namespace string, condition cmapi.CertificateRequestConditionType, reason, message string) {
	t.Helper()
	api := certManagerClient(t, apiServer.Config)
	eventually(t, "a CertificateRequest", func() error {
		found := requests(t, namespace)
		if len(found) != 1 {
			return fmt.Errorf("there are %d", len(found))
		}
		now := metav1.Now()
		found[0].Status.Conditions = append(found[0].Status.Conditions, cmapi.CertificateRequestCondition{
			Type: condition, Status: cmmeta.ConditionTrue, Reason: reason, Message: message, LastTransitionTime: &now,
		})
		return api.Status().Update(t.Context(), &found[0])
	})
}
