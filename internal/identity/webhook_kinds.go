package identity

import (
	"context"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
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
