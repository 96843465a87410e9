package identity

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"slices"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	applyv1 "k8s.io/client-go/applyconfigurations/admissionregistration/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// A mutating is the name of a MutatingWebhookConfiguration.
type mutating string

func (m mutating) name() string { return "MutatingWebhookConfiguration " + string(m) }

func (m mutating) read(ctx context.Context, c client.Client) ([]webhookBundle, error) {
	var found admissionregistrationv1.MutatingWebhookConfiguration
	if err := c.Get(ctx, client.ObjectKey{Name: string(m)}, &found); err != nil {
		return nil, err
	}
	var bundles []webhookBundle
	for _, w := range found.Webhooks {
		bundles = append(bundles, webhookBundle{name: w.Name, caBundle: w.ClientConfig.CABundle})
	}
	return bundles, nil
}

func (m mutating) apply(bundles []webhookBundle) runtime.ApplyConfiguration {
	c := applyv1.MutatingWebhookConfiguration(string(m))
	for _, b := range bundles {
		c.WithWebhooks(applyv1.MutatingWebhook().WithName(b.name).
			WithClientConfig(applyv1.WebhookClientConfig().WithCABundle(b.caBundle...)))
	}
	return c
}

// A validating is the name of a ValidatingWebhookConfiguration.
type validating string

func (v validating) name() string { return "ValidatingWebhookConfiguration " + string(v) }

func (v validating) read(ctx context.Context, c client.Client) ([]webhookBundle, error) {
	var found admissionregistrationv1.ValidatingWebhookConfiguration
	if err := c.Get(ctx, client.ObjectKey{Name: string(v)}, &found); err != nil {
		return nil, err
	}
	var bundles []webhookBundle
	for _, w := range found.Webhooks {
		bundles = append(bundles, webhookBundle{name: w.Name, caBundle: w.ClientConfig.CABundle})
	}
	return bundles, nil
}

func (v validating) apply(bundles []webhookBundle) runtime.ApplyConfiguration {
	c := applyv1.ValidatingWebhookConfiguration(string(v))
	for _, b := range bundles {
		c.WithWebhooks(applyv1.ValidatingWebhook().WithName(b.name).
			WithClientConfig(applyv1.WebhookClientConfig().WithCABundle(b.caBundle...)))
	}
	return c
}

// A converted is a CRD whose versions differ in shape.
type converted struct {
	crd                string
	namespace, service string
	trusted            []*x509.Certificate
}

func (c converted) name() string { return "CustomResourceDefinition " + c.crd }

// read returns the bundle of the CRD's conversion if it is ours to keep. The chart
// cannot know the release's namespace, so a conversion without a bundle is one that
// nobody keeps yet.
func (c converted) read(ctx context.Context, from client.Client) ([]webhookBundle, error) {
	found := crd(c.crd)
	if err := from.Get(ctx, client.ObjectKey{Name: c.crd}, found); apierrors.IsNotFound(err) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	field := func(path ...string) string {
		text, _, _ := unstructured.NestedString(found.Object, append([]string{"spec", "conversion"}, path...)...)
		return text
	}
	namespace := field("webhook", "clientConfig", "service", "namespace")
	if field("strategy") != "Webhook" || field("webhook", "clientConfig", "service", "name") != c.service {
		return nil, nil
	}
	bundle, err := base64.StdEncoding.DecodeString(field("webhook", "clientConfig", "caBundle"))
	if err != nil {
		return nil, fmt.Errorf("read caBundle: %w", err)
	}
	held, _ := parseCertificates(bundle) // what cannot be read is replaced
	known := slices.ContainsFunc(held, func(h *x509.Certificate) bool { return slices.ContainsFunc(c.trusted, h.Equal) })
	switch {
	case namespace == c.namespace:
		return []webhookBundle{{name: c.crd, caBundle: bundle}}, nil
	case len(bundle) == 0 || known:
		return []webhookBundle{{name: c.crd}}, nil // to be written, with the namespace
	}
	return nil, nil // another mesh's
}

func (c converted) apply(bundles []webhookBundle) runtime.ApplyConfiguration {
	o := crd(c.crd)
	for _, b := range bundles {
		_ = unstructured.SetNestedMap(o.Object, map[string]any{
			"strategy": "Webhook",
			"webhook": map[string]any{
				"clientConfig": map[string]any{
					"caBundle": base64.StdEncoding.EncodeToString(b.caBundle),
					"service":  map[string]any{"namespace": c.namespace, "name": c.service},
				},
				"conversionReviewVersions": []any{"v1"},
			},
		}, "spec", "conversion")
	}
	return client.ApplyConfigurationFromUnstructured(o)
}

// crd returns an empty CustomResourceDefinition. It is not typed: its types would be
// a module of their own, for two fields.
func crd(name string) *unstructured.Unstructured {
	o := &unstructured.Unstructured{}
	o.SetAPIVersion("apiextensions.k8s.io/v1")
	o.SetKind("CustomResourceDefinition")
	o.SetName(name)
	return o
}
