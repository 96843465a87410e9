package conversion

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/outrigger-mesh/outrigger/internal/annotation"
)

// A shape turns objects of one version into those of the version that the mesh
// reads, and back. Either changes the object that it gets.
type shape struct {
	toRead, fromRead func(*unstructured.Unstructured) error
}

// same is the shape of a version that needs no more than another name.
var same = shape{toRead: leave, fromRead: leave} //nolint:gochecknoglobals // a constant, if Go had them of this type

func leave(*unstructured.Unstructured) error { return nil }

// versions returns the shapes of a kind by version, nil for a kind that is not
// SMI's.
func versions(kind schema.GroupKind) map[string]shape {
	switch kind.String() {
	case "TrafficTarget.access.smi-spec.io":
		return map[string]shape{
			"v1alpha1": {
				toRead: func(o *unstructured.Unstructured) error {
					if err := gather(o, "destination", "sources", "specs"); err != nil {
						return err
					}
					if err := rename(o, "specs", "rules"); err != nil {
						return err
					}
					return complete(o)
				},
				fromRead: func(o *unstructured.Unstructured) error {
					if err := writePort(o); err != nil {
						return err
					}
					if err := rename(o, "rules", "specs"); err != nil {
						return err
					}
					return spread(o, "destination", "sources", "specs")
				},
			},
			"v1alpha2": {toRead: complete, fromRead: writePort},
			"v1alpha3": same,
		}
	case "HTTPRouteGroup.specs.smi-spec.io":
		flat := shape{
			toRead:   func(o *unstructured.Unstructured) error { return gather(o, "matches") },
			fromRead: func(o *unstructured.Unstructured) error { return spread(o, "matches") },
		}
		return map[string]shape{"v1alpha1": flat, "v1alpha2": flat, "v1alpha3": same, "v1alpha4": same}
	case "TCPRoute.specs.smi-spec.io":
		silent := shape{toRead: markPorts, fromRead: unmarkPorts}
		return map[string]shape{"v1alpha1": silent, "v1alpha2": silent, "v1alpha3": silent, "v1alpha4": same}
	case "TrafficSplit.split.smi-spec.io":
		return map[string]shape{"v1alpha1": same, "v1alpha2": same, "v1alpha3": same, "v1alpha4": same}
	}
	return nil
}

// Convert returns o in another version of its kind, given without the group. It
// does not change o.
func Convert(o *unstructured.Unstructured, version string) (*unstructured.Unstructured, error) {
	out, err := convert(o.DeepCopy(), version)
	if err != nil {
		return nil, fmt.Errorf("convert %s %s/%s from %s to %s: %w", o.GetKind(), o.GetNamespace(), o.GetName(), o.GroupVersionKind().Version, version, err)
	}
	return out, nil
}

func convert(o *unstructured.Unstructured, version string) (*unstructured.Unstructured, error) {
	kind := o.GroupVersionKind()
	shapes := versions(kind.GroupKind())
	if shapes == nil {
		return nil, fmt.Errorf("%s is not a kind of SMI's", kind.GroupKind())
	}
	for _, v := range []string{kind.Version, version} {
		if _, ok := shapes[v]; !ok {
			return nil, fmt.Errorf("there is no version %q; there are %s", v, strings.Join(slices.Sorted(maps.Keys(shapes)), ", "))
		}
	}
	if kind.Version == version {
		return o, nil
	}
	if err := shapes[kind.Version].toRead(o); err != nil {
		return nil, err
	}
	if err := shapes[version].fromRead(o); err != nil {
		return nil, err
	}
	o.SetGroupVersionKind(kind.GroupKind().WithVersion(version))
	return o, nil
}

// gather moves fields from the top of an object into its spec.
func gather(o *unstructured.Unstructured, fields ...string) error {
	if _, ok := o.Object["spec"]; ok {
		return fmt.Errorf("this version has no spec; it has %s at the top", strings.Join(fields, ", "))
	}
	spec := map[string]any{}
	o.Object["spec"] = spec
	return move(o.Object, spec, fields)
}

// spread moves fields from an object's spec to its top.
func spread(o *unstructured.Unstructured, fields ...string) error {
	spec, err := specOf(o)
	if err != nil {
		return err
	}
	if err := move(spec, o.Object, fields); err != nil {
		return err
	}
	for _, field := range slices.Sorted(maps.Keys(spec)) {
		return fmt.Errorf("that version has no field for spec.%s", field)
	}
	delete(o.Object, "spec")
	return nil
}

func move(from, to map[string]any, fields []string) error {
	for _, field := range fields {
		if _, taken := to[field]; taken {
			return fmt.Errorf("it has the field %s twice, at the top and in spec", field)
		}
		if value, ok := from[field]; ok {
			to[field] = value
			delete(from, field)
		}
	}
	return nil
}

// rename gives a field of an object's spec another name.
func rename(o *unstructured.Unstructured, from, to string) error {
	spec, err := specOf(o)
	if err != nil {
		return err
	}
	if _, ok := spec[to]; ok {
		return fmt.Errorf("this version has no field %s; it has %s", to, from)
	}
	if value, ok := spec[from]; ok {
		spec[to] = value
		delete(spec, from)
	}
	return nil
}

// complete gives a TrafficTarget what later versions want: both lists, and the
// port as an annotation.
func complete(o *unstructured.Unstructured) error {
	spec, err := specOf(o)
	if err != nil {
		return err
	}
	for _, list := range []string{"rules", "sources"} {
		if spec[list] == nil {
			spec[list] = []any{}
		}
	}
	destination, ok := spec["destination"].(map[string]any)
	if !ok {
		return nil // the schema says that it is missing
	}
	field, ok := destination["port"]
	if !ok {
		return nil
	}
	number, ok := field.(int64)
	if !ok || number < 1 || number > 65535 {
		return fmt.Errorf("the destination's port is %v; a number from 1 to 65535 is allowed", field)
	}
	port, annotations := strconv.FormatInt(number, 10), o.GetAnnotations()
	if written, ok := annotations[annotation.DestinationPort]; ok && written != port {
		return fmt.Errorf("the destination's port is %s, and the annotation %s is %q; leave one of them out", port, annotation.DestinationPort, written)
	}
	delete(destination, "port")
	return unstructured.SetNestedField(o.Object, port, "metadata", "annotations", annotation.DestinationPort)
}

// writePort makes a field of the port that an annotation says. What is not a port
// stays an annotation, for package ingest to report.
func writePort(o *unstructured.Unstructured) error {
	written, ok, err := unstructured.NestedString(o.Object, "metadata", "annotations", annotation.DestinationPort)
	if err != nil || !ok {
		return err
	}
	spec, err := specOf(o)
	if err != nil {
		return err
	}
	destination, ok := spec["destination"].(map[string]any)
	if _, has := destination["port"]; !ok || has {
		return nil
	}
	port, err := strconv.ParseUint(written, 10, 16)
	if err != nil || port == 0 || strconv.FormatUint(port, 10) != written {
		return nil //nolint:nilerr // it stays as it is
	}
	destination["port"] = int64(port)
	dropAnnotation(o, annotation.DestinationPort)
	return nil
}

// markPorts says of a TCPRoute that lists no port, not even an empty list, that it
// means the destination's.
func markPorts(o *unstructured.Unstructured) error {
	if _, listed, err := unstructured.NestedFieldNoCopy(o.Object, "spec", "matches", "ports"); err != nil || listed {
		return err
	}
	if written, ok := o.GetAnnotations()[annotation.RoutePorts]; ok && written != annotation.OfDestination {
		return fmt.Errorf("the annotation %s is %q; %s is allowed", annotation.RoutePorts, written, annotation.OfDestination)
	}
	return unstructured.SetNestedField(o.Object, annotation.OfDestination, "metadata", "annotations", annotation.RoutePorts)
}

// unmarkPorts leaves such a mark out, and gives a TCPRoute that has neither it nor a
// list an empty list: without one it would come back with the mark.
func unmarkPorts(o *unstructured.Unstructured) error {
	_, listed, err := unstructured.NestedFieldNoCopy(o.Object, "spec", "matches", "ports")
	if err != nil || listed {
		return err
	}
	if o.GetAnnotations()[annotation.RoutePorts] != annotation.OfDestination {
		return unstructured.SetNestedSlice(o.Object, []any{}, "spec", "matches", "ports")
	}
	dropAnnotation(o, annotation.RoutePorts)
	return nil
}

func dropAnnotation(o *unstructured.Unstructured, key string) {
	unstructured.RemoveNestedField(o.Object, "metadata", "annotations", key)
	if len(o.GetAnnotations()) == 0 {
		unstructured.RemoveNestedField(o.Object, "metadata", "annotations")
	}
}

func specOf(o *unstructured.Unstructured) (map[string]any, error) {
	if o.Object["spec"] == nil {
		o.Object["spec"] = map[string]any{}
	}
	spec, ok := o.Object["spec"].(map[string]any)
	if !ok {
		return nil, fmt.Errorf("spec is a %T, not an object", o.Object["spec"])
	}
	return spec, nil
}
