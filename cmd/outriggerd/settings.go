package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/outrigger-mesh/outrigger/injector"
	"github.com/outrigger-mesh/outrigger/internal/annotation"
	"github.com/outrigger-mesh/outrigger/internal/ingest"
	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

// identity is who outriggerd is, in the mesh that it serves.
func (c config) identity() mesh.Identity {
	return mesh.Identity{Namespace: c.namespace, ServiceAccount: "outriggerd"}
}

// injector returns what injected pods get. The bundle is the ClusterTrustBundle
// with the roots; empty for the ConfigMap.
func (c config) injector(bundle string) (injector.Settings, error) {
	s := injector.Settings{
		Mesh: c.mesh, TrustDomain: c.trustDomain,
		ControlPlane:    fmt.Sprintf("outriggerd.%s.svc.%s:15128", c.namespace, c.clusterDomain),
		ControlPlaneID:  c.identity().URI(c.trustDomain),
		SystemNamespace: c.namespace, OSMMesh: c.osmMesh, ClusterTrustBundle: bundle,
		InitImage: c.proxy.initImage, ProxyImage: c.proxy.image, PullPolicy: corev1.PullPolicy(c.proxy.pullPolicy),
		LogLevel: c.proxy.logLevel, Concurrency: c.proxy.concurrency, LegacyIptables: c.proxy.legacyIptables,
		Redirect: annotation.Redirect{
			ExcludeInboundPorts: c.proxy.excludeIn, ExcludeOutboundPorts: c.proxy.excludeOut,
			ExcludeOutboundCIDRs: c.proxy.excludeCIDRs, IncludeOutboundCIDRs: c.proxy.includeCIDRs,
		},
	}
	var errs []error
	for _, quantity := range []struct {
		flag, text string
		into       *resource.Quantity
	}{
		{"proxy-cpu", c.proxy.cpu, &s.Resources.CPU},
		{"proxy-memory", c.proxy.memory, &s.Resources.Memory},
		{"proxy-cpu-limit", c.proxy.cpuLimit, &s.Resources.CPULimit},
		{"proxy-memory-limit", c.proxy.memoryLimit, &s.Resources.MemoryLimit},
	} {
		if quantity.text == "" {
			continue
		}
		parsed, err := resource.ParseQuantity(quantity.text)
		if err != nil {
			errs = append(errs, fmt.Errorf("--%s is %q; a quantity such as 100m or 64Mi is allowed", quantity.flag, quantity.text))
		}
		*quantity.into = parsed
	}
	return s, errors.Join(append(errs, s.Validate())...)
}

// ingest returns the mesh's settings for a snapshot, with the trust domains that
// are accepted now, of which the first one signs.
func (c config) ingest(cidrs []netip.Prefix, domains []mesh.TrustDomain) ingest.Options {
	mode := mesh.Enforced
	if c.trafficPolicy == "permissive" {
		mode = mesh.Permissive
	}
	tracing, _ := c.tracing.mesh() // validate has asked
	return ingest.Options{
		Mode: mode, AllowEgress: c.egress == "allow",
		TrustDomain: domains[0].Name, ClusterDomain: c.clusterDomain, TrustBundle: domains[0].Bundle,
		AlsoTrusted:  domains[1:],
		OldTLS:       c.minimumTLS == "1.2",
		ServiceCIDRs: cidrs, OSMMeshName: c.osmMesh, SystemNamespace: c.namespace,
		Tracing: tracing,
	}
}

// trustOf returns what proxies verify their peers against under some options.
func trustOf(o ingest.Options) *mesh.Trust {
	return mesh.Settings{TrustDomain: o.TrustDomain, TrustBundle: o.TrustBundle, AlsoTrusted: o.AlsoTrusted}.Trust()
}

// mesh returns where spans go, or nil if nowhere.
func (t tracingConfig) mesh() (*mesh.Tracing, error) {
	sampling, ok := annotation.ParseSampling(t.sampling)
	if !ok {
		return nil, fmt.Errorf("--tracing-sampling is %q; a number from 0 to 100 with at most two decimals is allowed", t.sampling)
	}
	if t.collector == "" {
		return nil, nil //nolint:nilnil // nothing is traced, and nothing is wrong
	}
	host, port, err := net.SplitHostPort(t.collector)
	number, portErr := strconv.ParseUint(port, 10, 16)
	_, notAddress := netip.ParseAddr(host)
	named := strings.Contains(host, ".") && len(validation.IsDNS1123Subdomain(strings.TrimSuffix(host, "."))) == 0
	if err != nil || portErr != nil || number == 0 || notAddress != nil && !named {
		return nil, fmt.Errorf("--tracing-collector is %q; HOST:PORT is allowed, where HOST is an address, or a name with its namespace or domain", t.collector)
	}
	return &mesh.Tracing{Host: host, Port: uint16(number), Sampling: sampling}, nil
}

// rangeKinds are what ranges reads. A ClusterIP of a range that is not yet known
// is taken for one outside the mesh, so a change of these counts at once.
func (c config) rangeKinds(mapper meta.RESTMapper) ([]client.Object, error) {
	if len(c.serviceCIDRs) > 0 {
		return nil, nil
	}
	_, err := mapper.RESTMapping(networkingv1.SchemeGroupVersion.WithKind("ServiceCIDR").GroupKind(), networkingv1.SchemeGroupVersion.Version)
	if meta.IsNoMatchError(err) {
		return nil, errors.New("this cluster does not say what its ClusterIPs are (Kubernetes does from 1.33 on): set the chart's serviceCIDRs to its --service-cluster-ip-range")
	}
	if err != nil {
		return nil, fmt.Errorf("ask for the ranges of ClusterIPs: %w", err)
	}
	return []client.Object{&networkingv1.ServiceCIDR{}}, nil
}

// ranges returns the ranges of ClusterIPs: those of the flag, or those that the
// API server has now.
func (c config) ranges(ctx context.Context, from client.Reader) ([]netip.Prefix, error) {
	if len(c.serviceCIDRs) > 0 {
		return c.serviceCIDRs, nil
	}
	var cidrs networkingv1.ServiceCIDRList
	if err := from.List(ctx, &cidrs); err != nil {
		return nil, fmt.Errorf("ask for the ranges of ClusterIPs (set --service-cidrs on clusters without the ServiceCIDR API): %w", err)
	}
	var found []netip.Prefix
	for _, cidr := range cidrs.Items {
		for _, text := range cidr.Spec.CIDRs {
			prefix, err := netip.ParsePrefix(text)
			if err != nil {
				return nil, fmt.Errorf("read ServiceCIDR %s: %w", cidr.Name, err)
			}
			found = append(found, prefix.Masked())
		}
	}
	if len(found) == 0 {
		return nil, errors.New("the API server has no ServiceCIDR; set --service-cidrs")
	}
	slices.SortFunc(found, netip.Prefix.Compare)
	return found, nil
}
