package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"path/filepath"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/certwatcher"
	"sigs.k8s.io/controller-runtime/pkg/metrics"

	"github.com/outrigger-mesh/outrigger/injector"
	"github.com/outrigger-mesh/outrigger/internal/api"
	"github.com/outrigger-mesh/outrigger/internal/controller"
	"github.com/outrigger-mesh/outrigger/internal/identity"
	"github.com/outrigger-mesh/outrigger/internal/rotation"
	"github.com/outrigger-mesh/outrigger/webhook"
)

// webhookService is the Service that the API server calls, as the chart names it.
const webhookService = "outrigger-webhook"

// wireWebhook serves admission.
func (p *plane) wireWebhook(ending context.Context, _ *rest.Config) error {
	settings, err := p.cfg.injector(p.bundle)
	if err != nil {
		return err
	}
	observe, err := webhook.Counter(metrics.Registry)
	if err != nil {
		return fmt.Errorf("register the metrics of admission: %w", err)
	}
	handler := webhook.New(webhook.Config{
		// From the cache alone: admission of pods asks nobody.
		Roots:    (&controller.RootReader{Client: p.direct, Scope: rotation.RootScope{Namespace: p.cfg.namespace}}).Roots,
		Settings: settings, Adjust: p.inDomains, Namespaces: controller.Lookup{Cached: p.mgr.GetCache()},
		Observe: observe, Log: p.log.WithName("webhook"),
	})
	certificate, err := p.webhookCertificate()
	if err != nil {
		return err
	}
	secure := &tls.Config{MinVersion: tls.VersionTLS13, GetCertificate: certificate}
	return p.mgr.Add(everywhere(func(ctx context.Context) error {
		return serveHTTP(ctx, p.cfg.webhook.address, sendAway(ending, handler), secure)
	}))
}

// inDomains gives pods that are made now the trust domains of now.
func (p *plane) inDomains(s *injector.Settings) {
	accepted, err := p.authorities.Now()
	if err != nil {
		return // none is open yet: that of the chart's values will be
	}
	domains := accepted.TrustDomains()
	s.TrustDomain, s.AlsoTrusted = domains[0].Name, nil
	s.ControlPlaneID = p.cfg.identity().URI(s.TrustDomain)
	for _, d := range domains[1:] {
		if d.Bundle != "" {
			s.AlsoTrusted = append(s.AlsoTrusted, d.Name)
		}
	}
}

// webhookCertificate returns where the serving certificate comes from: files that
// cert-manager keeps, or outriggerd itself, which then also keeps caBundle.
func (p *plane) webhookCertificate() (func(*tls.ClientHelloInfo) (*tls.Certificate, error), error) {
	if dir := p.cfg.webhook.certificateDir; dir != "" {
		watcher, err := certwatcher.New(filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key"))
		if err != nil {
			return nil, fmt.Errorf("read the webhook's certificate: %w", err)
		}
		return watcher.GetCertificate, p.mgr.Add(everywhere(watcher.Start))
	}
	own := identity.NewWebhook(identity.WebhookConfig{
		Home:     identity.Home{Client: p.direct, Namespace: p.cfg.namespace, Mesh: p.cfg.mesh},
		DNSNames: []string{fmt.Sprintf("%s.%s.svc", webhookService, p.cfg.namespace)},
		Mutating: []string{p.cfg.webhook.configuration}, Validating: []string{p.cfg.webhook.configuration},
		Converted: api.Converted(), Service: webhookService,
	})
	p.ready = append(p.ready, own.Ready)
	return own.GetCertificate, p.mgr.Add(everywhere(func(ctx context.Context) error {
		return own.Run(ctx, p.log.WithName("webhook"))
	}))
}

// wireHealth serves metrics and health.
func (p *plane) wireHealth(ending context.Context, _ *rest.Config) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(metrics.Registry, promhttp.HandlerOpts{}))
	health(ending, mux, p.ready)
	return p.mgr.Add(everywhere(func(ctx context.Context) error {
		return serveHTTP(ctx, p.cfg.metricsAddress, mux, nil)
	}))
}

// health answers whether this replica is alive, which it is as long as it
// answers, and ready: what it would say is up to date, and it was not told to end.
func health(ending context.Context, mux *http.ServeMux, conditions []func() error) {
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if ending.Err() != nil {
			http.Error(w, "this replica is ending", http.StatusServiceUnavailable)
			return
		}
		for _, ready := range conditions {
			if err := ready(); err != nil {
				http.Error(w, err.Error(), http.StatusServiceUnavailable)
				return
			}
		}
		fmt.Fprintln(w, "ok")
	})
}
