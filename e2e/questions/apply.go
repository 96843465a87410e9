package questions

import (
	"fmt"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"

	accessv1alpha3 "github.com/outrigger-mesh/outrigger/internal/api/access/v1alpha3"
	"github.com/outrigger-mesh/outrigger/internal/manifest"
	"github.com/outrigger-mesh/outrigger/internal/why"
)

// Servers returns the servers that an answer says are allowed and there, sorted:
// "namespace/account".
func Servers(a why.CallAnswer) []string {
	var out []string
	for _, b := range a.Backends {
		if b.Verdict == why.Allowed && b.Server != "" && b.Percent > 0 {
			out = append(out, b.Server)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// An Annotation is what a command of a change sets.
type Annotation struct {
	Kind, Namespace, Name string // Namespace is empty for a namespace itself
	Key, Value            string
	Remove                bool
}

// ReadCommand reads "kubectl annotate KIND NAME [-n NAMESPACE] --overwrite KEY=VALUE",
// in quotes or without, or KEY- in its place.
func ReadCommand(command string) (Annotation, error) {
	words := strings.Fields(command)
	a := Annotation{}
	if i := slices.Index(words, "-n"); i > 0 && i+1 < len(words) {
		a.Namespace = words[i+1]
		words = slices.Delete(words, i, i+2)
	}
	if len(words) == 5 && strings.HasSuffix(words[4], "-") {
		return Annotation{Kind: words[2], Namespace: a.Namespace, Name: words[3], Key: strings.TrimSuffix(words[4], "-"), Remove: true}, nil
	}
	if len(words) != 6 || words[0] != "kubectl" || words[1] != "annotate" || words[4] != "--overwrite" {
		return Annotation{}, fmt.Errorf("the command %q annotates nothing", command)
	}
	a.Kind, a.Name = words[2], words[3]
	a.Key, a.Value, _ = strings.Cut(strings.Trim(words[5], "'"), "=")
	return a, nil
}

// ReadSources reads the entry that a change would add to the sources of
// TrafficTargets.
func ReadSources(c why.Change) ([]accessv1alpha3.Subject, error) {
	var out []accessv1alpha3.Subject
	if err := yaml.UnmarshalStrict([]byte(c.YAML), &out); err != nil {
		return nil, fmt.Errorf("read the sources to add: %w", err)
	}
	return out, nil
}

// Apply returns objects with a change made, and leaves objects alone.
func Apply(objects manifest.Objects, c why.Change) (manifest.Objects, error) {
	switch {
	case c.Command != "":
		return annotate(objects, c.Command)
	case len(c.Sources) == 0:
		more, err := manifest.Parse([]byte(c.YAML), "default")
		if err != nil {
			return manifest.Objects{}, fmt.Errorf("the change is not YAML that the mesh reads: %w", err)
		}
		return manifest.Join(objects, more), nil
	}
	entry, err := ReadSources(c)
	if err != nil {
		return manifest.Objects{}, err
	}
	objects.TrafficTargets = slices.Clone(objects.TrafficTargets)
	for i, o := range objects.TrafficTargets {
		if slices.Contains(c.Sources, "TrafficTarget "+o.Namespace+"/"+o.Name) {
			objects.TrafficTargets[i] = o.DeepCopy()
			objects.TrafficTargets[i].Spec.Sources = append(objects.TrafficTargets[i].Spec.Sources, entry...)
		}
	}
	return objects, nil
}

func annotate(objects manifest.Objects, command string) (manifest.Objects, error) {
	a, err := ReadCommand(command)
	if err != nil {
		return manifest.Objects{}, err
	}
	set := func(annotations *map[string]string) {
		if a.Remove {
			delete(*annotations, a.Key)
			return
		}
		if *annotations == nil {
			*annotations = map[string]string{}
		}
		(*annotations)[a.Key] = a.Value
	}
	switch a.Kind {
	case "namespace":
		objects.Namespaces = slices.Clone(objects.Namespaces)
		for i, n := range objects.Namespaces {
			if n.Name == a.Name {
				objects.Namespaces[i] = n.DeepCopy()
				set(&objects.Namespaces[i].Annotations)
			}
		}
	case "service":
		objects.Services = slices.Clone(objects.Services)
		for i, s := range objects.Services {
			if s.Namespace == a.Namespace && s.Name == a.Name {
				objects.Services[i] = s.DeepCopy()
				set(&objects.Services[i].Annotations)
			}
		}
	default:
		return manifest.Objects{}, fmt.Errorf("the command %q annotates a %s; namespace and service are known", command, a.Kind)
	}
	return objects, nil
}
