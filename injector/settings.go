package injector

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/outrigger-mesh/outrigger/internal/annotation"
)

// Settings are what is the same for every pod of a mesh. Pods override some of
// them by annotations.
type Settings struct {
	// Mesh is the mesh's name and the audience of the sidecars' tokens.
	Mesh string
	// TrustDomain of the pods' SPIFFE IDs.
	TrustDomain string
	// AlsoTrusted are trust domains in which outriggerd may be, too, while the mesh
	// moves from one to another.
	AlsoTrusted []string
	// ControlPlane is the host:port of outriggerd, ControlPlaneID the SPIFFE ID
	// that it must present.
	ControlPlane, ControlPlaneID string
	// SystemNamespace is the mesh's own, whose pods are never injected.
	SystemNamespace string
	// OSMMesh is the OSM mesh name whose namespaces are part of this mesh. Empty
	// means none.
	OSMMesh string

	// InitImage and ProxyImage are the images of the two containers.
	InitImage, ProxyImage string
	// PullPolicy of both images; empty is IfNotPresent.
	PullPolicy corev1.PullPolicy
	// LogLevel is Envoy's; empty is warning.
	LogLevel string
	// Concurrency is the number of Envoy's worker threads; zero is 2.
	Concurrency int
	// Resources of the sidecar.
	Resources Resources
	// Redirect holds exclusions for every pod, joined with the pod's own.
	Redirect annotation.Redirect
	// LegacyIptables is for nodes whose kernel has no nft: it gives the init
	// container NET_RAW too, which the old tables want.
	LegacyIptables bool
	// ClusterTrustBundle names the object that holds the mesh's roots, for clusters
	// that have the kind. Empty means the ConfigMap outrigger-trust in each
	// namespace.
	ClusterTrustBundle string
}

// Resources are requests and limits. A zero quantity sets none.
type Resources struct {
	CPU, Memory           resource.Quantity // requests
	CPULimit, MemoryLimit resource.Quantity
}

// Validate reports everything in s that cannot work, each by the field's name.
// The other functions of this package expect valid Settings.
func (s Settings) Validate() error {
	var errs []error
	for _, field := range []struct{ name, value string }{
		{"Mesh", s.Mesh},
		{"TrustDomain", s.TrustDomain},
		{"ControlPlane", s.ControlPlane},
		{"ControlPlaneID", s.ControlPlaneID},
		{"SystemNamespace", s.SystemNamespace},
		{"InitImage", s.InitImage},
		{"ProxyImage", s.ProxyImage},
	} {
		if field.value == "" {
			errs = append(errs, fmt.Errorf("%s: must not be empty", field.name))
		}
	}
	switch s.PullPolicy {
	case "", corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever:
	default:
		errs = append(errs, fmt.Errorf("PullPolicy: %q; allowed are Always, IfNotPresent and Never", s.PullPolicy))
	}
	if s.LogLevel != "" && !slices.Contains(annotation.LogLevels(), s.LogLevel) {
		errs = append(errs, fmt.Errorf("LogLevel: %q; allowed are %s", s.LogLevel, strings.Join(annotation.LogLevels(), ", ")))
	}
	if s.Concurrency < 0 || s.Concurrency > annotation.MaxConcurrency {
		errs = append(errs, fmt.Errorf("Concurrency: %d; allowed is 0 to %d", s.Concurrency, annotation.MaxConcurrency))
	}
	errs = append(errs, s.Resources.validate())
	if err := redirectSettings(s.Redirect).Validate(); err != nil {
		errs = append(errs, fmt.Errorf("Redirect: %w", err))
	}
	return errors.Join(errs...)
}

func (r Resources) validate() error {
	var errs []error
	for _, kind := range []struct {
		name           string
		request, limit resource.Quantity
	}{{"CPU", r.CPU, r.CPULimit}, {"Memory", r.Memory, r.MemoryLimit}} {
		if kind.request.Sign() < 0 || kind.limit.Sign() < 0 {
			errs = append(errs, fmt.Errorf("Resources.%s: must not be negative", kind.name))
		}
		if kind.limit.Sign() > 0 && kind.request.Cmp(kind.limit) > 0 {
			errs = append(errs, fmt.Errorf("Resources.%s: %s is more than its limit %s", kind.name, &kind.request, &kind.limit))
		}
	}
	return errors.Join(errs...)
}
