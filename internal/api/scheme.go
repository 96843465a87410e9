package api

import (
	"errors"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	accessv1alpha3 "github.com/outrigger-mesh/outrigger/internal/api/access/v1alpha3"
	specsv1alpha4 "github.com/outrigger-mesh/outrigger/internal/api/specs/v1alpha4"
	splitv1alpha4 "github.com/outrigger-mesh/outrigger/internal/api/split/v1alpha4"
)

// AddToScheme adds every kind that the mesh reads, each in the one version that
// it reads it in.
func AddToScheme(s *runtime.Scheme) error {
	builder := runtime.NewSchemeBuilder(accessv1alpha3.AddToScheme, specsv1alpha4.AddToScheme, splitv1alpha4.AddToScheme)
	return builder.AddToScheme(s)
}

// Converted returns the names of the CRDs whose versions differ in shape, so that
// the API server cannot convert between them by itself.
func Converted() []string {
	return []string{"traffictargets.access.smi-spec.io", "httproutegroups.specs.smi-spec.io", "tcproutes.specs.smi-spec.io"}
}

// A Kind is one that the mesh reads, and the versions in which it can, the best
// first: those that differ in their name only. The best is the one that clusters
// store, so that no conversion is needed.
type Kind struct {
	Group, Name, Resource string
	Versions              []string

	object, list runtime.Object
}

// Kinds returns the kinds that the mesh reads.
func Kinds() []Kind {
	return []Kind{
		{"access.smi-spec.io", "TrafficTarget", "traffictargets", []string{"v1alpha3"}, &accessv1alpha3.TrafficTarget{}, &accessv1alpha3.TrafficTargetList{}},
		{"specs.smi-spec.io", "HTTPRouteGroup", "httproutegroups", []string{"v1alpha4", "v1alpha3"}, &specsv1alpha4.HTTPRouteGroup{}, &specsv1alpha4.HTTPRouteGroupList{}},
		{"specs.smi-spec.io", "TCPRoute", "tcproutes", []string{"v1alpha4"}, &specsv1alpha4.TCPRoute{}, &specsv1alpha4.TCPRouteList{}},
		{"split.smi-spec.io", "TrafficSplit", "trafficsplits", []string{"v1alpha2", "v1alpha4", "v1alpha3"}, &splitv1alpha4.TrafficSplit{}, &splitv1alpha4.TrafficSplitList{}},
	}
}

// A Served says what an API server serves of a Kind.
type Served struct {
	Kind
	// Version is the one to read.
	Version string
	// Status says that it has a status of its own. The CRDs of OSM and of SMI have
	// none.
	Status bool
}

// GroupVersionKind of what is read.
func (s Served) GroupVersionKind() schema.GroupVersionKind {
	return schema.GroupVersionKind{Group: s.Group, Version: s.Version, Kind: s.Name}
}

// Discover finds out in which versions to read. A cluster may have the CRDs of OSM
// or of SMI, which serve fewer; resources returns what is served of a group and
// version, as a discovery client does, with an error that notFound recognises if
// that is nothing.
func Discover(resources func(groupVersion string) (*metav1.APIResourceList, error), notFound func(error) bool) ([]Served, error) {
	known := map[string]*metav1.APIResourceList{}
	var out []Served
	var errs []error
	for _, kind := range Kinds() {
		found := Served{Kind: kind}
		for _, version := range kind.Versions {
			group := kind.Group + "/" + version
			if _, ok := known[group]; !ok {
				list, err := resources(group)
				if err != nil && !notFound(err) {
					return nil, fmt.Errorf("ask what is served of %s: %w", group, err)
				}
				known[group] = list
			}
			if has(known[group], kind.Resource) {
				found.Version, found.Status = version, has(known[group], kind.Resource+"/status")
				break
			}
		}
		if found.Version == "" {
			errs = append(errs, fmt.Errorf("the API server serves no %s in a version that can be read: %s of %v", kind.Name, kind.Group, kind.Versions))
		}
		out = append(out, found)
	}
	return out, errors.Join(errs...)
}

func has(list *metav1.APIResourceList, resource string) bool {
	if list == nil {
		return false
	}
	for _, r := range list.APIResources {
		if r.Name == resource {
			return true
		}
	}
	return false
}

// AddServed adds the kinds in the versions that are served. Their Go types stay the
// same: the versions have one shape.
func AddServed(s *runtime.Scheme, served []Served) {
	for _, k := range served {
		gvk := k.GroupVersionKind()
		s.AddKnownTypeWithName(gvk, k.object)
		s.AddKnownTypeWithName(gvk.GroupVersion().WithKind(k.Name+"List"), k.list)
		metav1.AddToGroupVersion(s, gvk.GroupVersion())
	}
}
