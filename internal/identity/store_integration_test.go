//go:build integration

package identity

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

func TestReplicasThatStartTogetherShareOneCA(t *testing.T) {
	home, _ := newHome(t, "together")
	cas := make([]*CA, 10)
	var group errgroup.Group
	for i := range cas {
		group.Go(func() (err error) {
			cas[i], err = OpenCA(t.Context(), home, trustDomain)
			return err
		})
	}
	must(t, group.Wait())
	for i, ca := range cas {
		if !ca.root.Equal(cas[0].root) || !ca.intermediate.Equal(cas[0].intermediate) {
			t.Errorf("replica %d has another CA", i)
		}
	}
	var secret corev1.Secret
	must(t, admin(t).Get(t.Context(), client.ObjectKey{Namespace: home.Namespace, Name: CASecret}, &secret))
	stored, err := parseCA(secret.Data, time.Now())
	must(t, err)
	if !stored.root.Equal(cas[0].root) {
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
				change(t, c, h, func(s *corev1.Secret) { delete(s.Data, keyIntermediateKey) })
			}, say: "damaged",
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			home, _ := newHome(t, "ca-"+strings.ToLower(name))
			first, err := OpenCA(t.Context(), home, trustDomain)
			must(t, err)
			tc.harm(t, admin(t), home)
			second, err := OpenCA(t.Context(), home, trustDomain)
			if tc.say != "" {
				if !errors.Is(err, ErrNoCA) || !strings.Contains(err.Error(), tc.say) {
					t.Errorf("%s\nwant ErrNoCA with %q, got %v", tc.reason, tc.say, err)
				}
				return
			}
			must(t, err)
			if !first.root.Equal(second.root) {
				t.Errorf("%s\nthe root changed", tc.reason)
			}
			var record corev1.ConfigMap
			must(t, admin(t).Get(t.Context(), client.ObjectKey{Namespace: home.Namespace, Name: TrustConfigMap}, &record))
			if diff := cmp.Diff(string(encodeCertificates(first.root)), record.Data[TrustKey]); diff != "" {
				t.Errorf("%s\nrecord (-want +got):\n%s", tc.reason, diff)
			}
		})
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
	m.Namespace, m.Name = namespace, TrustConfigMap
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
	ca, err := OpenCA(t.Context(), home, trustDomain)
	must(t, err)
	trust := Trust{Home: home, Issuer: ca}
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
		must(t, admin(t).Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: TrustConfigMap}, &m))
		return m.Data
	}
	want := map[string]string{TrustKey: string(encodeCertificates(ca.root))}

	sync("the system namespace has one already", []TrustChange{{"trust-a", TrustCreated}, {"trust-b", TrustCreated}}, "trust-b", "trust-a")
	sync("nothing to do", nil, "trust-a", "trust-b")
	sync("a namespace that does not exist any more is nobody's fault", nil, "trust-a", "trust-b", "trust-gone")
	if diff := cmp.Diff(want, read("trust-a")); diff != "" {
		t.Errorf("roots (-want +got):\n%s", diff)
	}

	stranger := testCA(t)
	changed := home.trust("trust-a", encodeCertificates(stranger.root))
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
	_, err = OpenCA(t.Context(), other, trustDomain)
	must(t, err)
	sync("another mesh in the cluster is left alone", nil, "trust-a", "trust-theirs")
}
