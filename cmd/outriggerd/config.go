package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/outrigger-mesh/outrigger/internal/identity"
	"github.com/outrigger-mesh/outrigger/internal/rotation"
)

// config is what outriggerd was told: the mesh, what injected pods get, and where
// it listens. The chart's values map to it one to one.
type config struct {
	mesh, trustDomain, clusterDomain, osmMesh string
	namespace                                 string
	pod, podUID                               string // this replica's own
	trafficPolicy, egress                     string
	clusterTrustBundle, minimumTLS            string
	authority                                 identity.Authority // of the mesh's first start
	vaultTokenFile, vaultCA                   string
	serviceCIDRs                              prefixes
	tracing                                   tracingConfig

	proxy    proxyConfig
	webhook  webhookConfig
	leaf     time.Duration
	logLevel slog.Level

	xdsAddress, metricsAddress, debugAddress string
}

// proxyConfig is what every injected pod gets.
type proxyConfig struct {
	image, initImage, pullPolicy       string
	cpu, memory, cpuLimit, memoryLimit string
	logLevel                           string
	concurrency                        int
	legacyIptables                     bool
	excludeIn, excludeOut              ports
	excludeCIDRs, includeCIDRs         prefixes
}

// tracingConfig is where spans go; an empty collector is none.
type tracingConfig struct{ collector, sampling string }

type webhookConfig struct {
	address       string
	configuration string // name of both webhook configurations
	// certificateDir holds tls.crt and tls.key from cert-manager; empty means that
	// outriggerd makes its certificate itself and writes caBundle.
	certificateDir string
}

// parseConfig reads the flags and checks them all, so that a mistake in the
// chart's values shows at once and whole.
func parseConfig(args []string, env func(string) string, usage io.Writer) (config, error) {
	var c config
	f := flag.NewFlagSet("outriggerd", flag.ContinueOnError)
	f.SetOutput(usage)
	f.StringVar(&c.mesh, "mesh", "outrigger", "name of the mesh, and audience of the proxies' tokens")
	f.StringVar(&c.trustDomain, "trust-domain", "cluster.local", "SPIFFE trust domain")
	f.StringVar(&c.clusterDomain, "cluster-domain", "cluster.local", "DNS domain of the cluster")
	f.StringVar(&c.osmMesh, "osm-mesh", "osm", "value of openservicemesh.io/monitored-by that joins a namespace to this mesh")
	f.StringVar(&c.namespace, "namespace", env("POD_NAMESPACE"), "the system namespace (default $POD_NAMESPACE)")
	f.StringVar(&c.pod, "pod", env("POD_NAME"), "name of this replica's pod (default $POD_NAME)")
	f.StringVar(&c.podUID, "pod-uid", env("POD_UID"), "uid of this replica's pod (default $POD_UID)")
	f.StringVar(&c.trafficPolicy, "traffic-policy", "permissive", "permissive or enforced, where a namespace does not say")
	f.StringVar(&c.egress, "egress", "allow", "allow or deny, where a namespace does not say")
	f.Var(&c.serviceCIDRs, "service-cidrs", "ranges of ClusterIPs (default: asked from the API server)")
	f.StringVar(&c.clusterTrustBundle, "cluster-trust-bundle", "auto", "auto or never: whether pods get the roots as a ClusterTrustBundle where all nodes can")
	f.StringVar(&c.minimumTLS, "minimum-tls-version", "1.3", "1.3 or 1.2: what clients of pods in the mesh speak at least; proxies themselves speak 1.3")
	f.DurationVar(&c.leaf, "workload-certificate-duration", 24*time.Hour, "how long a workload's certificate is valid")
	authority := f.String("authority", `{"builtIn":{}}`, "who signs, as JSON; without a trustDomain it is of the mesh's")
	f.StringVar(&c.vaultCA, "vault-ca-secret", "", "Secret with the CA of Vault's server, for MeshRootCertificates; empty: public authorities")
	f.StringVar(&c.vaultTokenFile, "vault-token-file", "/var/run/secrets/outrigger.dev/vault/token", "outriggerd's service account token for Vault's Kubernetes login")
	f.StringVar(&c.tracing.collector, "tracing-collector", "", "HOST:PORT of a collector that takes OTLP over gRPC; empty: nothing is traced")
	f.StringVar(&c.tracing.sampling, "tracing-sampling", "1", "percentage of requests that are traced, where neither a Service nor a namespace says")
	f.TextVar(&c.logLevel, "log-level", slog.LevelInfo, "debug, info, warn or error")

	f.StringVar(&c.proxy.image, "proxy-image", "", "image of the sidecar")
	f.StringVar(&c.proxy.initImage, "init-image", "", "image of the init container")
	f.StringVar(&c.proxy.pullPolicy, "image-pull-policy", "IfNotPresent", "pull policy of both")
	f.StringVar(&c.proxy.cpu, "proxy-cpu", "10m", "CPU request of the sidecar")
	f.StringVar(&c.proxy.memory, "proxy-memory", "64Mi", "memory request of the sidecar")
	f.StringVar(&c.proxy.cpuLimit, "proxy-cpu-limit", "", "CPU limit of the sidecar; empty is none")
	f.StringVar(&c.proxy.memoryLimit, "proxy-memory-limit", "256Mi", "memory limit of the sidecar")
	f.StringVar(&c.proxy.logLevel, "proxy-log-level", "warning", "Envoy's log level")
	f.IntVar(&c.proxy.concurrency, "proxy-concurrency", 2, "Envoy's worker threads")
	f.BoolVar(&c.proxy.legacyIptables, "legacy-iptables", false, "give init containers NET_RAW too, for nodes whose kernel has no nft")
	f.Var(&c.proxy.excludeIn, "exclude-inbound-ports", "ports that pods receive without their proxy")
	f.Var(&c.proxy.excludeOut, "exclude-outbound-ports", "ports that pods call without their proxy")
	f.Var(&c.proxy.excludeCIDRs, "exclude-outbound-cidrs", "ranges that pods call without their proxy")
	f.Var(&c.proxy.includeCIDRs, "include-outbound-cidrs", "ranges that alone are called through the proxy")

	f.StringVar(&c.xdsAddress, "xds-address", ":15128", "where proxies get certificates and configuration")
	f.StringVar(&c.webhook.address, "webhook-address", ":9443", "where the API server asks about pods")
	f.StringVar(&c.metricsAddress, "metrics-address", ":9091", "metrics and health")
	f.StringVar(&c.debugAddress, "debug-address", "127.0.0.1:9092", "what the mesh knows; keep it on loopback")
	f.StringVar(&c.webhook.configuration, "webhook-configuration", "", "name of the webhook configurations whose caBundle is kept")
	f.StringVar(&c.webhook.certificateDir, "webhook-certificate-dir", "", "tls.crt and tls.key for the webhooks, instead of a certificate of our own")
	if err := f.Parse(args); err != nil {
		return config{}, err
	}
	if f.NArg() > 0 {
		return config{}, fmt.Errorf("unexpected argument %q; outriggerd takes flags only", f.Arg(0))
	}
	var err error
	if c.authority, err = rotation.ParseAuthority([]byte(*authority), c.trustDomain); err != nil {
		return c, errors.Join(fmt.Errorf("--authority: %w", err), c.validate())
	}
	return c, c.validate()
}

// validate joins every fault of the flags.
func (c config) validate() error {
	var errs []error
	required := func(flag, value string) {
		if value == "" {
			errs = append(errs, fmt.Errorf("--%s is empty; it is required", flag))
		}
	}
	oneOf := func(flag, value string, allowed ...string) {
		if !slices.Contains(allowed, value) {
			errs = append(errs, fmt.Errorf("--%s is %q; %s are allowed", flag, value, strings.Join(allowed, ", ")))
		}
	}
	name := func(flag, value string) {
		for _, fault := range validation.IsDNS1123Subdomain(value) {
			errs = append(errs, fmt.Errorf("--%s is %q: %s", flag, value, fault))
		}
	}
	required("namespace", c.namespace)
	required("pod", c.pod)
	required("pod-uid", c.podUID)
	required("proxy-image", c.proxy.image)
	required("init-image", c.proxy.initImage)
	required("webhook-configuration", c.webhook.configuration)
	name("mesh", c.mesh)
	name("trust-domain", c.trustDomain)
	name("cluster-domain", c.clusterDomain)
	oneOf("traffic-policy", c.trafficPolicy, "permissive", "enforced")
	oneOf("egress", c.egress, "allow", "deny")
	oneOf("minimum-tls-version", c.minimumTLS, "1.3", "1.2")
	oneOf("cluster-trust-bundle", c.clusterTrustBundle, "auto", "never")
	oneOf("image-pull-policy", c.proxy.pullPolicy, "Always", "IfNotPresent", "Never")
	if _, err := c.tracing.mesh(); err != nil {
		errs = append(errs, err)
	}
	if c.leaf < 10*time.Minute || c.leaf > 30*24*time.Hour {
		errs = append(errs, fmt.Errorf("--workload-certificate-duration is %s; 10m to 720h are allowed", c.leaf))
	}
	return errors.Join(errs...)
}

// prefixes is a flag that holds CIDR ranges, separated by commas.
type prefixes []netip.Prefix

func (p *prefixes) String() string { return fmt.Sprint([]netip.Prefix(*p)) }

// Set replaces the list.
func (p *prefixes) Set(text string) error {
	*p = nil
	for _, field := range list(text) {
		prefix, err := netip.ParsePrefix(field)
		if err != nil {
			return fmt.Errorf("%q is not a CIDR range such as 10.0.0.0/8", field)
		}
		*p = append(*p, prefix.Masked())
	}
	return nil
}

// ports is a flag that holds port numbers, separated by commas.
type ports []uint16

func (p *ports) String() string { return fmt.Sprint([]uint16(*p)) }

// Set replaces the list.
func (p *ports) Set(text string) error {
	*p = nil
	for _, field := range list(text) {
		port, err := strconv.ParseUint(field, 10, 16)
		if err != nil || port == 0 {
			return fmt.Errorf("%q is not a port; 1 to 65535 are allowed", field)
		}
		*p = append(*p, uint16(port))
	}
	return nil
}

func list(text string) []string {
	return strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == ' ' })
}
