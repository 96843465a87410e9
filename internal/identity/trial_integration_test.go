//go:build integration

package identity

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/outrigger-mesh/outrigger/internal/rotation"
)

// A move is a mesh with an authority of its own that is to move to another one.
type move struct {
	*Follower
	to Authority
}

// newMove runs the follower of the elected replica until the test ends.
func newMove(t *testing.T, home Home, to Authority, open func(ctx context.Context, known Known) (Issuer, error)) move {
	t.Helper()
	first := testCA(t)
	m := move{to: to, Follower: &Follower{
		Authorities: &Authorities{}, Changed: func() {}, Log: logr.Discard(), Namespace: home.Namespace,
		Open: func(ctx context.Context, a Authority, known Known, _ func()) (Issuer, error) {
			if a.Name == "first" {
				return first, nil
			}
			return open(ctx, known)
		},
	}}
	m.Follow(rotation.NewState(alone("first", trustDomain, nil).Signing.Authority, string(encodeCertificates(first.Roots()...))))
	m.Also([]Authority{to})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- m.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		must(t, <-ended)
	})
	return m
}

// refused waits until the mesh knows why it cannot move.
func (m move) refused(t *testing.T, why string) {
	t.Helper()
	eventually(t, "the authority is refused", func() error {
		known := m.Seen()[m.to.Name]
		if known.Roots != "" {
			t.Fatalf("the mesh would move to an authority that does not sign; want it to say %s", why)
		}
		if !strings.Contains(known.Failed, why) {
			return fmt.Errorf("it says %q; want %s", known.Failed, why)
		}
		return nil
	})
}

// open waits until the mesh may move, and returns the roots that it would trust.
func (m move) open(t *testing.T) string {
	t.Helper()
	var known rotation.Open
	eventually(t, "the authority is open", func() error {
		if known = m.Seen()[m.to.Name]; known.Roots == "" {
			return fmt.Errorf("it says %q", known.Failed)
		}
		return nil
	})
	return known.Roots
}

// TestMoveToVaultThatDoesNotSign wants a mesh to stay where it is while Vault signs
// nothing for pods, although its roots are known.
func TestMoveToVaultThatDoesNotSign(t *testing.T) {
	v := newVaultTest(t, "vault-move", map[string]any{"allowed_serial_numbers": ""}, nil)
	given := string(encodeCertificates(v.open(t).Roots()...))
	stranger := string(encodeCertificates(testCA(t).Roots()...))
	start := func(change func(*VaultConfig)) move {
		cfg := v.config
		change(&cfg)
		return newMove(t, v.home, Authority{Name: "vault", TrustDomain: trustDomain, Vault: &cfg.Vault}, func(ctx context.Context, known Known) (Issuer, error) {
			cfg := cfg
			cfg.Known = known
			return OpenVault(ctx, v.home, cfg)
		})
	}
	for name, tc := range map[string]struct {
		change func(*VaultConfig)
		why    string
	}{
		"given roots":      {func(c *VaultConfig) { c.Vault.Roots = given }, "serial_number"},
		"roots of Vault's": {func(*VaultConfig) {}, "serial_number"},
		"other role":       {func(c *VaultConfig) { c.Vault.Role = "other" }, "permission denied"},
	} {
		t.Run(name, func(t *testing.T) { start(tc.change).refused(t, tc.why) })
	}
	m := start(func(*VaultConfig) {})
	m.refused(t, "serial_number")
	must(t, v.server.MakeRole(t.Context(), vaultMount, vaultRole, trustDomain, nil))
	if got := m.open(t); got != given {
		t.Errorf("the roots are %s; want Vault's", got)
	}
	t.Run("roots of somebody else", func(t *testing.T) {
		start(func(c *VaultConfig) { c.Vault.Roots = stranger }).refused(t, "unknown authority")
	})
}

// TestMoveToCertManager wants the same of cert-manager, and what was recorded of an
// authority that once had the same name not to count.
func TestMoveToCertManager(t *testing.T) {
	startCertManager(t)
	const name = "cm-move"
	m := newMeshIssuer(t, name)
	newIssuer(t, name)
	stranger := string(encodeCertificates(testCA(t).Roots()...))
	must(t, admin(t).Create(t.Context(), &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: name, Name: RootsConfigMap}, Data: map[string]string{m.cfg.Authority + ".crt": stranger},
	}))
	start := func(change func(*CertManagerConfig)) move {
		cfg := m.cfg
		change(&cfg)
		to := Authority{Name: cfg.Authority, TrustDomain: trustDomain, CertManager: &rotation.CertManager{Issuer: cfg.Issuer.Name, Roots: cfg.Roots}}
		return newMove(t, m.home, to, func(ctx context.Context, known Known) (Issuer, error) {
			cfg := cfg
			cfg.Known = known
			return OpenCertManager(ctx, cfg)
		})
	}
	found := start(func(*CertManagerConfig) {}).open(t)
	if found == stranger {
		t.Error("the roots are those of the authority that had the name before")
	}
	t.Run("fails", func(t *testing.T) {
		start(func(c *CertManagerConfig) { c.Roots, c.Issuer.Name = found, "self-signed" }).refused(t, "private-key-secret-name")
	})
	t.Run("roots of somebody else", func(t *testing.T) {
		start(func(c *CertManagerConfig) { c.Roots = stranger }).refused(t, "unknown authority")
	})
	t.Run("given roots", func(t *testing.T) { start(func(c *CertManagerConfig) { c.Roots = found }).open(t) })
	wantNoRequests(t, name)
}
