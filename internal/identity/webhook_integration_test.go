//go:build integration

package identity

import (
	"crypto/tls"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sync/errgroup"
	admissionv1 "k8s.io/api/admission/v1"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// serve answers admission reviews with the certificate of a Webhook, and counts
// them.
func serve(t *testing.T, w *Webhook) (url string, calls *atomic.Int64) {
	t.Helper()
	calls = &atomic.Int64{}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		var review admissionv1.AdmissionReview
		if err := json.NewDecoder(r.Body).Decode(&review); err != nil {
			http.Error(rw, err.Error(), http.StatusBadRequest)
			return
		}
		review.Response = &admissionv1.AdmissionResponse{UID: review.Request.UID, Allowed: true}
		review.Request = nil
		_ = json.NewEncoder(rw).Encode(review)
	}))
	server.TLS = &tls.Config{GetCertificate: w.GetCertificate}
	server.StartTLS()
	t.Cleanup(server.Close)
	return "https://localhost" + server.URL[strings.LastIndex(server.URL, ":"):], calls
}

func TestAPIServerTrustsTheWebhook(t *testing.T) {
	home, _ := newHome(t, "hooks")
	name := "outrigger-" + home.Namespace // what the chart's rules allow
	cfg := WebhookConfig{Home: home, DNSNames: []string{"localhost"}, Mutating: []string{name}, Validating: []string{name}}
	replicas := []*Webhook{NewWebhook(cfg), NewWebhook(cfg), NewWebhook(cfg)}
	url, calls := serve(t, replicas[0])
	register(t, name, url)
	if replicas[0].Ready() == nil {
		t.Error("ready before anything was done")
	}

	var group errgroup.Group
	for _, w := range replicas {
		group.Go(func() error {
			_, err := w.Sync(t.Context())
			return err
		})
	}
	must(t, group.Wait())
	for _, w := range replicas {
		must(t, w.Ready())
		if !w.current.Load().ca.Equal(replicas[0].current.Load().ca) {
			t.Error("two replicas have two CAs")
		}
	}
	if replicas[0].current.Load().certificate.Leaf.Equal(replicas[1].current.Load().certificate.Leaf) {
		t.Error("two replicas share a certificate")
	}
	// The API server hears of the CA by a watch.
	eventually(t, "an object is admitted through the webhook", func() error { return createOne(t, home.Namespace) })
	if calls.Load() == 0 {
		t.Error("the object was admitted without asking the webhook")
	}
	changed, err := replicas[1].Sync(t.Context())
	must(t, err)
	if len(changed) > 0 {
		t.Errorf("nothing was to be done, but %v were changed", changed)
	}

	// Somebody deletes the CA. The next replica makes a new one, and those that
	// still serve a certificate of the old one stay trusted.
	secret := &corev1.Secret{}
	secret.Namespace, secret.Name = home.Namespace, WebhookSecret
	must(t, admin(t).Delete(t.Context(), secret))
	changed, err = replicas[1].Sync(t.Context())
	must(t, err)
	if len(changed) != 2 {
		t.Errorf("want both configurations changed, got %v", changed)
	}
	old, next := replicas[0].current.Load().ca, replicas[1].current.Load().ca
	if old.Equal(next) {
		t.Error("the deleted CA is still in use")
	}
	for _, bundle := range bundles(t, name) {
		held, err := parseCertificates(bundle)
		must(t, err)
		if len(held) != 2 || !slices.ContainsFunc(held, old.Equal) || !slices.ContainsFunc(held, next.Equal) {
			t.Errorf("want the old CA and the next, got %d certificates", len(held))
		}
	}
	must(t, createOne(t, home.Namespace))
	_, err = replicas[0].Sync(t.Context())
	must(t, err)
	if !replicas[0].current.Load().ca.Equal(next) {
		t.Error("the first replica did not follow")
	}
	eventually(t, "the new certificate is trusted", func() error { return createOne(t, home.Namespace) })

	// Somebody breaks one caBundle.
	var found admissionregistrationv1.ValidatingWebhookConfiguration
	must(t, admin(t).Get(t.Context(), client.ObjectKey{Name: name}, &found))
	found.Webhooks[0].ClientConfig.CABundle = nil
	must(t, admin(t).Update(t.Context(), &found))
	changed, err = replicas[2].Sync(t.Context())
	must(t, err)
	if want := []string{"ValidatingWebhookConfiguration " + name}; !slices.Equal(changed, want) {
		t.Errorf("want %v changed, got %v", want, changed)
	}
}

func TestWebhookWithoutConfigurationIsNotReady(t *testing.T) {
	home, _ := newHome(t, "no-hooks")
	w := NewWebhook(WebhookConfig{Home: home, DNSNames: []string{"localhost"}, Mutating: []string{"outrigger-no-hooks"}})
	if _, err := w.Sync(t.Context()); err == nil {
		t.Error("a missing configuration is no error")
	}
	if w.Ready() == nil {
		t.Error("ready although nobody calls")
	}
}

// createOne creates an object that the webhooks are asked about.
func createOne(t *testing.T, namespace string) error {
	t.Helper()
	return admin(t).Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, GenerateName: "x-"}})
}

// register makes webhook configurations that ask about ConfigMaps of one
// namespace.
func register(t *testing.T, name, url string) {
	t.Helper()
	rules := []admissionregistrationv1.RuleWithOperations{{
		Operations: []admissionregistrationv1.OperationType{admissionregistrationv1.Create},
		Rule:       admissionregistrationv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"configmaps"}},
	}}
	selector := &metav1.LabelSelector{MatchLabels: map[string]string{"kubernetes.io/metadata.name": "hooks"}}
	none := admissionregistrationv1.SideEffectClassNone
	must(t, admin(t).Create(t.Context(), &admissionregistrationv1.MutatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Webhooks: []admissionregistrationv1.MutatingWebhook{{
			Name: "a.inject.outrigger.dev", ClientConfig: admissionregistrationv1.WebhookClientConfig{URL: &url}, Rules: rules,
			NamespaceSelector: selector, SideEffects: &none, AdmissionReviewVersions: []string{"v1"},
		}, {
			Name: "b.inject.outrigger.dev", ClientConfig: admissionregistrationv1.WebhookClientConfig{URL: &url}, Rules: rules,
			NamespaceSelector: selector, SideEffects: &none, AdmissionReviewVersions: []string{"v1"},
		}},
	}))
	must(t, admin(t).Create(t.Context(), &admissionregistrationv1.ValidatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Webhooks: []admissionregistrationv1.ValidatingWebhook{{
			Name: "warn.outrigger.dev", ClientConfig: admissionregistrationv1.WebhookClientConfig{URL: &url}, Rules: rules,
			NamespaceSelector: selector, SideEffects: &none, AdmissionReviewVersions: []string{"v1"},
		}},
	}))
	t.Cleanup(func() {
		for _, c := range []client.Object{&admissionregistrationv1.MutatingWebhookConfiguration{}, &admissionregistrationv1.ValidatingWebhookConfiguration{}} {
			c.SetName(name)
			_ = admin(t).Delete(t.Context(), c)
		}
	})
}

// bundles returns all caBundles of both kinds.
func bundles(t *testing.T, name string) [][]byte {
	t.Helper()
	var all [][]byte
	for _, c := range []configuration{mutating(name), validating(name)} {
		found, err := c.read(t.Context(), admin(t))
		must(t, err)
		for _, b := range found {
			all = append(all, b.caBundle)
		}
	}
	return all
}
