package manifest

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	yamlreader "k8s.io/apimachinery/pkg/util/yaml"

	"github.com/outrigger-mesh/outrigger/internal/api"
	accessv1alpha3 "github.com/outrigger-mesh/outrigger/internal/api/access/v1alpha3"
	"github.com/outrigger-mesh/outrigger/internal/api/conversion"
	specsv1alpha4 "github.com/outrigger-mesh/outrigger/internal/api/specs/v1alpha4"
	splitv1alpha4 "github.com/outrigger-mesh/outrigger/internal/api/split/v1alpha4"
	"github.com/outrigger-mesh/outrigger/internal/ingest"
)

// Objects is what YAML holds, as far as the mesh has use for it.
type Objects struct {
	ingest.Objects
	Deployments []*appsv1.Deployment
	// Templates are the pods that workloads of all kinds make, Deployments too.
	Templates []Template
	// Skipped are the kinds that the mesh has no use for, as they came.
	Skipped []string
}

// A Template is what the pods of a workload look like.
type Template struct {
	Kind, Namespace, Name string
	Pod                   corev1.PodTemplateSpec
}

// Parse reads YAML documents and Lists. Objects that name no namespace are in the
// one given. A field that its kind does not have is an error, as is a version of
// an SMI kind that there is not: both would quietly mean less than what was
// written.
func Parse(text []byte, namespace string) (Objects, error) {
	scheme := runtime.NewScheme()
	kinds := runtime.NewSchemeBuilder(corev1.AddToScheme, appsv1.AddToScheme, batchv1.AddToScheme, discoveryv1.AddToScheme, api.AddToScheme)
	if err := kinds.AddToScheme(scheme); err != nil {
		return Objects{}, err
	}
	p := parser{scheme: scheme, decoder: serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer(), namespace: namespace}
	reader := yamlreader.NewYAMLReader(bufio.NewReader(bytes.NewReader(text)))
	for n := 1; ; n++ {
		doc, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return p.out, nil
		}
		if err == nil {
			err = p.document(doc)
		}
		if err != nil {
			return Objects{}, fmt.Errorf("read document %d: %w", n, err)
		}
	}
}

type parser struct {
	scheme    *runtime.Scheme
	decoder   runtime.Decoder
	namespace string
	out       Objects
}

// blank reports whether a document has nothing but comments.
func blank(doc []byte) bool {
	for line := range bytes.Lines(doc) {
		if line = bytes.TrimSpace(line); len(line) > 0 && line[0] != '#' && !bytes.Equal(line, []byte("---")) {
			return false
		}
	}
	return true
}

func (p *parser) document(doc []byte) error {
	if blank(doc) {
		return nil
	}
	var of metav1.TypeMeta
	if err := yamlreader.Unmarshal(doc, &of); err != nil {
		return err
	}
	kind := of.GroupVersionKind()
	switch {
	case of.Kind == "" || of.APIVersion == "":
		return errors.New("it has no kind or no apiVersion, so it is no Kubernetes object")
	case p.scheme.Recognizes(kind):
	case of.APIVersion == ingest.MeshConfigAPIVersion && of.Kind == ingest.MeshConfigKind:
		return p.meshConfig(doc)
	case strings.HasSuffix(kind.Group, ".smi-spec.io"):
		converted, err := p.convert(doc, kind)
		if err != nil {
			return err
		}
		doc = converted
	default:
		p.out.Skipped = append(p.out.Skipped, kind.Kind)
		return nil
	}
	object, _, err := p.decoder.Decode(doc, nil, nil)
	if err != nil {
		return err
	}
	if list, ok := object.(*corev1.List); ok {
		for i := range list.Items {
			if err := p.document(list.Items[i].Raw); err != nil {
				return fmt.Errorf("item %d: %w", i+1, err)
			}
		}
		return nil
	}
	if o, ok := object.(metav1.Object); ok && o.GetNamespace() == "" && kind.Kind != "Namespace" && kind.Kind != "Node" {
		o.SetNamespace(p.namespace)
	}
	p.sortIn(object, kind.Kind)
	return nil
}

// meshConfig keeps OSM's configuration of a mesh, which has no type here.
func (p *parser) meshConfig(doc []byte) error {
	o := &unstructured.Unstructured{}
	if err := yamlreader.UnmarshalStrict(doc, &o.Object); err != nil {
		return err
	}
	if o.GetNamespace() == "" {
		o.SetNamespace(p.namespace)
	}
	p.out.MeshConfigs = append(p.out.MeshConfigs, o)
	return nil
}

// convert returns an SMI object in the version that the mesh reads, as the API
// server would hand it out.
func (p *parser) convert(doc []byte, kind schema.GroupVersionKind) ([]byte, error) {
	read := p.scheme.VersionsForGroupKind(kind.GroupKind())
	if len(read) == 0 {
		return nil, fmt.Errorf("%s in version %s is not read by the mesh", kind.Kind, kind.GroupVersion())
	}
	o := &unstructured.Unstructured{}
	if err := yamlreader.UnmarshalStrict(doc, &o.Object); err != nil {
		return nil, err
	}
	o, err := conversion.Convert(o, read[0].Version)
	if err != nil {
		return nil, err
	}
	return o.MarshalJSON()
}

func (p *parser) sortIn(object runtime.Object, kind string) {
	out := &p.out
	switch o := object.(type) {
	case *corev1.Namespace:
		out.Namespaces = append(out.Namespaces, o)
	case *corev1.Node:
		out.Nodes = append(out.Nodes, o)
	case *corev1.Pod:
		out.Pods = append(out.Pods, o)
	case *corev1.Service:
		out.Services = append(out.Services, o)
	case *discoveryv1.EndpointSlice:
		out.EndpointSlices = append(out.EndpointSlices, o)
	case *accessv1alpha3.TrafficTarget:
		out.TrafficTargets = append(out.TrafficTargets, o)
	case *specsv1alpha4.HTTPRouteGroup:
		out.HTTPRouteGroups = append(out.HTTPRouteGroups, o)
	case *specsv1alpha4.TCPRoute:
		out.TCPRoutes = append(out.TCPRoutes, o)
	case *splitv1alpha4.TrafficSplit:
		out.TrafficSplits = append(out.TrafficSplits, o)
	case *appsv1.Deployment:
		out.Deployments = append(out.Deployments, o)
		p.template(kind, o, o.Spec.Template)
	case *appsv1.StatefulSet:
		p.template(kind, o, o.Spec.Template)
	case *appsv1.DaemonSet:
		p.template(kind, o, o.Spec.Template)
	case *appsv1.ReplicaSet:
		p.template(kind, o, o.Spec.Template)
	case *batchv1.Job:
		p.template(kind, o, o.Spec.Template)
	case *batchv1.CronJob:
		p.template(kind, o, o.Spec.JobTemplate.Spec.Template)
	default:
		out.Skipped = append(out.Skipped, kind)
	}
}

// template keeps a workload's pods, unless something else in a dump made it.
func (p *parser) template(kind string, o metav1.Object, pod corev1.PodTemplateSpec) {
	if len(o.GetOwnerReferences()) > 0 {
		return
	}
	p.out.Templates = append(p.out.Templates, Template{Kind: kind, Namespace: o.GetNamespace(), Name: o.GetName(), Pod: pod})
}

// Join returns what both hold.
func Join(a, b Objects) Objects {
	return Objects{
		Objects: ingest.Objects{
			Namespaces:      slices.Concat(a.Namespaces, b.Namespaces),
			Nodes:           slices.Concat(a.Nodes, b.Nodes),
			Pods:            slices.Concat(a.Pods, b.Pods),
			Services:        slices.Concat(a.Services, b.Services),
			EndpointSlices:  slices.Concat(a.EndpointSlices, b.EndpointSlices),
			TrafficTargets:  slices.Concat(a.TrafficTargets, b.TrafficTargets),
			HTTPRouteGroups: slices.Concat(a.HTTPRouteGroups, b.HTTPRouteGroups),
			TCPRoutes:       slices.Concat(a.TCPRoutes, b.TCPRoutes),
			TrafficSplits:   slices.Concat(a.TrafficSplits, b.TrafficSplits),
			MeshConfigs:     slices.Concat(a.MeshConfigs, b.MeshConfigs),
		},
		Deployments: slices.Concat(a.Deployments, b.Deployments),
		Templates:   slices.Concat(a.Templates, b.Templates),
		Skipped:     slices.Concat(a.Skipped, b.Skipped),
	}
}
