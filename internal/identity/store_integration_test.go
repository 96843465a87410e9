//go:build integration

package identity

import (
	"crypto/x509"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

func TestReplicasThatStartTogetherShareOneCA(t *testing.T) {
	home, _ := newHome(t, "together")
	cas := make([]*CA, 10)
	var group errgroup.Group
	for i := range cas {
		group.Go(func() (err error) {
			cas[i], err = OpenCA(t.Context(), home, CAConfig{TrustDomain: trustDomain})
			return err
		})
	}
	must(t, group.Wait())
	for i, ca := range cas {
		if !ca.authority.root.Equal(cas[0].authority.root) {
			t.Errorf("replica %d has another CA", i)
		}
	}
	var secret corev1.Secret
	must(t, admin(t).Get(t.Context(), client.ObjectKey{Namespace: home.Namespace, Name: CASecret}, &secret))
	stored, err := parseAuthority(secret.Data, time.Now())
	must(t, err)
	if !stored.root.Equal(cas[0].authority.root) {
		t.Error("the Secret holds another CA than the replicas")
	}
}

func TestCAIsNeverReplacedSilently(t *testing.T) {
	cases := map[string]struct {
		reason string
		harm   func(*testing.T, client.Client, Home)
		say    string // empty: the CA opens
	}{
		"NoHarm": {reason: "A second start finds the CA of the first.", harm: func(*testing.T, client.Client, Home) {}},
		"RecordDeleted": {
			reason: "The record alone is written again from the Secret.",
			harm:   func(t *testing.T, c client.Client, h Home) { deleteRecord(t, c, h.Namespace) },
		},
		"SecretDeleted": {
			reason: "A lost CA is a loss that people must hear of.",
			harm:   deleteCA, say: "is missing",
		},
		"SecretAndRecordDeleted": {
			reason: "The namespaces of the mesh remember too.",
			harm: func(t *testing.T, c client.Client, h Home) {
				must(t, c.Create(t.Context(), h.trust("default", []byte("x"))))
				t.Cleanup(func() { _ = c.Delete(t.Context(), h.trust("default", nil)) })
				deleteCA(t, c, h)
				deleteRecord(t, c, h.Namespace)
			}, say: "says that there was one",
		},
		"SecretReplaced": {
			reason: "Whoever puts another root there takes over the mesh.",
			harm: func(t *testing.T, c client.Client, h Home) {
				data, err := newCA(trustDomain, time.Now())
				must(t, err)
				change(t, c, h, func(s *corev1.Secret) { s.Data = data })
			}, say: "another root",
		},
		"SecretDamaged": {
			reason: "A CA that makes no sense signs nothing.",
			harm: func(t *testing.T, c client.Client, h Home) {
				change(t, c, h, func(s *corev1.Secret) { delete(s.Data, keyRootKey) })
			}, say: "damaged",
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			home, _ := newHome(t, "ca-"+strings.ToLower(name))
			first, err := OpenCA(t.Context(), home, CAConfig{TrustDomain: trustDomain})
			must(t, err)
			tc.harm(t, admin(t), home)
			second, err := OpenCA(t.Context(), home, CAConfig{TrustDomain: trustDomain})
			if tc.say != "" {
				if !errors.Is(err, ErrNoCA) || !strings.Contains(err.Error(), tc.say) {
					t.Errorf("%s\nwant ErrNoCA with %q, got %v", tc.reason, tc.say, err)
				}
				return
			}
			must(t, err)
			if !first.authority.root.Equal(second.authority.root) {
				t.Errorf("%s\nthe root changed", tc.reason)
			}
			var record corev1.ConfigMap
			must(t, admin(t).Get(t.Context(), client.ObjectKey{Namespace: home.Namespace, Name: mesh.TrustConfigMap}, &record))
			if diff := cmp.Diff(string(encodeCertificates(first.authority.root)), record.Data[TrustKey]); diff != "" {
				t.Errorf("%s\nrecord (-want +got):\n%s", tc.reason, diff)
			}
		})
	}
}

// TestUsersCA follows a Secret of the user's through its life.
func TestUsersCA(t *testing.T) {
	home, _ := newHome(t, "users-ca", "certificates.builtIn.secret=my-ca")
	changed := 0
	cfg := CAConfig{TrustDomain: trustDomain, Secret: "my-ca", Changed: func() { changed++ }}
	_, err := OpenCA(t.Context(), home, cfg)
	if !errors.Is(err, ErrNoCA) || !strings.Contains(err.Error(), "Secret users-ca/my-ca is missing") {
		t.Fatalf("want the missing Secret named, got %v", err)
	}
	root := userRoot(t, rsaKey(t, 2048), nil)
	lower := root.below(t, p256(t), nil)
	secret := &corev1.Secret{Type: corev1.SecretTypeTLS, Data: map[string][]byte{
		"tls.crt": encodeCertificates(lower.certificate), "tls.key": keyText(t, blockKey, lower.key), "ca.crt": encodeCertificates(root.certificate),
	}}
	secret.Namespace, secret.Name = home.Namespace, "my-ca"
	must(t, admin(t).Create(t.Context(), secret))
	ca, err := OpenCA(t.Context(), home, cfg)
	must(t, err)
	sign := func(reason string, by userAuthority) {
		t.Helper()
		_, request, template, err := ownRequest(home.Namespace, trustDomain, time.Hour)
		must(t, err)
		chain, err := issue(t.Context(), ca, request, template)
		must(t, err)
		if err := chain[1].CheckSignatureFrom(by.certificate); err != nil {
			t.Errorf("%s: %v", reason, err)
		}
	}
	sign("the Secret's intermediate signs the mesh's own", lower)
	reload := func(reason string, want bool) {
		t.Helper()
		got, err := ca.Reload(t.Context())
		must(t, err)
		if got != want {
			t.Errorf("%s: read again is %t, want %t", reason, got, want)
		}
	}
	replace := func(by userAuthority, roots ...*x509.Certificate) {
		t.Helper()
		secret.Data = map[string][]byte{"tls.crt": encodeCertificates(by.certificate), "tls.key": keyText(t, blockKey, by.key), "ca.crt": encodeCertificates(roots...)}
		must(t, admin(t).Update(t.Context(), secret))
	}
	reload("nothing changed", false)

	renewed := root.below(t, p256(t), nil)
	replace(renewed, root.certificate)
	reload("an intermediate is renewed without a restart", true)
	sign("the renewed intermediate is in use", renewed)
	if changed != 0 {
		t.Error("the roots are said to be other ones, but they are not")
	}

	next := userRoot(t, p256(t), func(c *x509.Certificate) { c.Subject.CommonName = "the next root" })
	replace(next, next.certificate)
	if _, err := ca.Reload(t.Context()); !errors.Is(err, ErrNoCA) || !strings.Contains(err.Error(), "another root") {
		t.Errorf("a root that no pod trusts is taken up: %v", err)
	}
	sign("the CA of before stays in use", renewed)

	// The way to go: announce it, have it distributed, then sign with it.
	replace(renewed, root.certificate, next.certificate)
	reload("a root is announced", true)
	if changed != 1 || len(ca.Roots()) != 2 {
		t.Errorf("%d roots, told %d times; want both roots, told once", len(ca.Roots()), changed)
	}
	_, err = Trust{Home: home, Authorities: authoritiesOf(ca)}.Sync(t.Context(), nil)
	must(t, err)
	replace(next, root.certificate, next.certificate)
	reload("the announced root signs", true)
	sign("the next root is in use", next)
	_, err = OpenCA(t.Context(), home, cfg)
	must(t, err)

	must(t, admin(t).Delete(t.Context(), secret))
	if _, err := ca.Reload(t.Context()); err == nil {
		t.Error("no error for a Secret that is gone")
	}
	sign("what is in memory stays in use", next)
	if _, err = OpenCA(t.Context(), home, cfg); !errors.Is(err, ErrNoCA) {
		t.Errorf("want ErrNoCA for a Secret that is gone, got %v", err)
	}
}

func deleteCA(t *testing.T, c client.Client, h Home) {
	t.Helper()
	secret := &corev1.Secret{}
	secret.Namespace, secret.Name = h.Namespace, CASecret
	must(t, c.Delete(t.Context(), secret))
}

func deleteRecord(t *testing.T, c client.Client, namespace string) {
	t.Helper()
	m := &corev1.ConfigMap{}
	m.Namespace, m.Name = namespace, mesh.TrustConfigMap
	must(t, c.Delete(t.Context(), m))
}

func change(t *testing.T, c client.Client, h Home, f func(*corev1.Secret)) {
	t.Helper()
	var secret corev1.Secret
	must(t, c.Get(t.Context(), client.ObjectKey{Namespace: h.Namespace, Name: CASecret}, &secret))
	f(&secret)
	must(t, c.Update(t.Context(), &secret))
}

func TestTrust(t *testing.T) {
	home, _ := newHome(t, "trust")
	ca, err := OpenCA(t.Context(), home, CAConfig{TrustDomain: trustDomain})
	must(t, err)
	trust := Trust{Home: home, Authorities: authoritiesOf(ca)}
	for _, name := range []string{"trust-a", "trust-b", "trust-c", "trust-theirs"} {
		namespace(t, name, nil)
	}
	theirs := home.trust("trust-theirs", []byte("not ours"))
	theirs.Labels = nil
	must(t, admin(t).Create(t.Context(), theirs))

	sync := func(reason string, want []TrustChange, namespaces ...string) {
		t.Helper()
		got, err := trust.Sync(t.Context(), namespaces)
		must(t, err)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("%s\nchanges (-want +got):\n%s", reason, diff)
		}
	}
	read := func(namespace string) map[string]string {
		t.Helper()
		var m corev1.ConfigMap
		must(t, admin(t).Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: mesh.TrustConfigMap}, &m))
		return m.Data
	}
	want := map[string]string{TrustKey: string(encodeCertificates(ca.authority.root))}

	sync("the system namespace has one already", []TrustChange{{"trust-a", TrustCreated}, {"trust-b", TrustCreated}}, "trust-b", "trust-a")
	sync("nothing to do", nil, "trust-a", "trust-b")
	sync("a namespace that does not exist any more is nobody's fault", nil, "trust-a", "trust-b", "trust-gone")
	if diff := cmp.Diff(want, read("trust-a")); diff != "" {
		t.Errorf("roots (-want +got):\n%s", diff)
	}

	stranger := testCA(t)
	changed := home.trust("trust-a", encodeCertificates(stranger.authority.root))
	changed.Data["more"], changed.Labels = "x", nil
	must(t, admin(t).Update(t.Context(), changed))
	sync("a changed one is put back and reported", []TrustChange{{"trust-a", TrustRestored}}, "trust-a", "trust-b")
	if diff := cmp.Diff(want, read("trust-a")); diff != "" {
		t.Errorf("roots (-want +got):\n%s", diff)
	}

	sync("what left the mesh loses them, what is not ours stays", []TrustChange{{"trust-b", TrustDeleted}}, "trust-a")
	if diff := cmp.Diff(map[string]string{TrustKey: "not ours"}, read("trust-theirs")); diff != "" {
		t.Errorf("theirs (-want +got):\n%s", diff)
	}
	sync("a namespace that joins gets ours, whatever was there", []TrustChange{{"trust-theirs", TrustRestored}}, "trust-a", "trust-theirs")
	if diff := cmp.Diff(want, read("trust-theirs")); diff != "" {
		t.Errorf("roots (-want +got):\n%s", diff)
	}

	// No controller ends it here, so it stays on its way out.
	leaving := &corev1.Namespace{}
	leaving.Name = "trust-c"
	must(t, admin(t).Delete(t.Context(), leaving))
	sync("a namespace on its way out takes nothing new", nil, "trust-a", "trust-c", "trust-theirs")

	other, _ := newHome(t, "trust-other-mesh")
	_, err = OpenCA(t.Context(), other, CAConfig{TrustDomain: trustDomain})
	must(t, err)
	sync("another mesh in the cluster is left alone", nil, "trust-a", "trust-theirs")
}

func TestOwnSecrets(t *testing.T) {
	home, _ := newHome(t, "own-secrets")
	first, err := OpenCA(t.Context(), home, CAConfig{TrustDomain: trustDomain, Secret: CASecret})
	must(t, err)
	_, err = OpenCA(t.Context(), home, CAConfig{TrustDomain: trustDomain, Secret: "outrigger-ca-2"})
	if !errors.Is(err, ErrNoCA) {
		t.Errorf("a second root is made though nobody rotates to it: %v", err)
	}
	next, err := OpenCA(t.Context(), home, CAConfig{TrustDomain: trustDomain, Secret: "outrigger-ca-2", Fresh: true})
	must(t, err)
	if next.authority.root.Equal(first.authority.root) {
		t.Error("the new root is the old one")
	}
	again, err := OpenCA(t.Context(), home, CAConfig{TrustDomain: trustDomain, Secret: "outrigger-ca-2", Roots: next.Roots()})
	must(t, err)
	if !again.authority.root.Equal(next.authority.root) {
		t.Error("a known root is another one")
	}
	_, err = OpenCA(t.Context(), home, CAConfig{TrustDomain: trustDomain, Secret: "outrigger-ca-2", Roots: first.Roots()})
	if !errors.Is(err, ErrNoCA) {
		t.Errorf("a Secret with another root than is known is accepted: %v", err)
	}
	_, err = OpenCA(t.Context(), home, CAConfig{TrustDomain: trustDomain, Secret: "outrigger-ca-3", Roots: first.Roots()})
	if !errors.Is(err, ErrNoCA) {
		t.Errorf("a root that is known and lost is made anew: %v", err)
	}
}
