package annotation

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// CheckNamespace returns what is wrong with the annotations of a namespace, each
// as an [*Error], in the order of their keys: values that are not allowed, keys of
// ours that nobody knows, and keys that have no effect on a namespace. Other
// annotations are passed over. So is whether a namespace is in the mesh.
//
// A build knows its own keys only: whoever refuses objects by this should let
// pass what was there before.
func CheckNamespace(annotations map[string]string) []error { return check(Namespace, annotations) }

// CheckService does for a Service what [CheckNamespace] does for a namespace.
func CheckService(annotations map[string]string) []error { return check(Service, annotations) }

// CheckPod does for a pod, or a pod template, what [CheckNamespace] does for a
// namespace.
func CheckPod(annotations map[string]string) []error { return check(Pod, annotations) }

func check(on Place, annotations map[string]string) []error {
	if !slices.ContainsFunc(slices.Collect(maps.Keys(annotations)), ours) {
		return nil
	}
	keys := Keys()
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(annotations)) {
		if err := checkOne(keys, on, name, annotations[name]); err != nil {
			errs = append(errs, err)
		}
	}
	return errs
}

// ours reports whether a key could be in the registry.
func ours(name string) bool {
	return strings.HasPrefix(name, Prefix) || strings.HasPrefix(name, "openservicemesh.io/")
}

// checkOne checks one annotation. OSM's names are checked where they mean
// something; elsewhere they are overlooked, as OSM did.
func checkOne(keys []Key, on Place, name, value string) *Error {
	e := &Error{Object: on.String() + " annotation", Key: name, Value: value, Otherwise: "it is ignored"}
	var elsewhere Place
	label := false
	for _, k := range keys {
		switch {
		case !slices.Contains(k.names(), name):
		case k.On&on == 0:
			elsewhere |= k.On
		case k.As == AsLabel:
			label = true
		case k.Valid(value):
			return nil
		default:
			e.Allowed, e.Otherwise = k.Allowed, k.Otherwise
			return e
		}
	}
	switch {
	case !strings.HasPrefix(name, Prefix):
		return nil
	case label:
		e.Fault, e.Allowed = "has no effect as an annotation", "a label of that name"
	case elsewhere != 0:
		e.Fault, e.Allowed = "has no effect on a "+on.String(), "it on a "+strings.ReplaceAll(elsewhere.String(), ", ", " or a ")
	default:
		e.Fault, e.Allowed = "is not known", nearest(keys, on, name)
	}
	return e
}

// nearest says which key was meant, or where all of them stand.
func nearest(keys []Key, on Place, name string) string {
	const tooFar = 1 << 10
	best, least := "", tooFar
	for _, k := range keys {
		if k.As == AsLabel {
			continue
		}
		d := distance(strings.TrimPrefix(name, Prefix), strings.TrimPrefix(k.Name, Prefix))
		if k.On&on == 0 {
			d++ // what may stand here is the better guess
		}
		if d < least {
			best, least = k.Name, d
		}
	}
	if least > len(strings.TrimPrefix(best, Prefix))/2 {
		return "a key of docs/annotations.md"
	}
	return fmt.Sprintf("%s, the nearest key that is", best)
}

// distance is how many letters must be put in, taken out or changed to make b of a.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
