package webhook

import (
	"fmt"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/outrigger-mesh/outrigger/internal/annotation"
)

// Paths that the handler serves.
const (
	PathOn       = "/inject/on"  // the namespace gives its pods sidecars
	PathAsk      = "/inject/ask" // the namespace lets its pods ask for one
	PathOSM      = "/inject/osm" // the namespace is in the mesh by OSM's label
	PathValidate = "/validate"   // workloads that say something about the mesh
	PathRefuse   = "/refuse"     // objects that say what the mesh would not honour
)

// Options are what differs between two installations.
type Options struct {
	// Name of both configurations. The API server calls webhooks in the order of
	// their configurations' names.
	Name string
	// SystemNamespace is the mesh's own; its Service is where the handler is.
	SystemNamespace, Service string
	// URL is used instead of the Service where it is not empty, without a path.
	URL string
	// CABundle verifies the handler's certificate, PEM.
	CABundle []byte
	// OSMMesh is the OSM mesh name whose namespaces are in the mesh. Where it is
	// empty there is no webhook for them.
	OSMMesh string
	// AnyTrafficTarget lets a TrafficTarget in that names a destination in another
	// namespace. It has no effect all the same.
	AnyTrafficTarget bool
	// TimeoutSeconds of the mutating webhooks; zero is 10.
	TimeoutSeconds int32
}

// podWord is a CEL expression for what annotation.PodWord reads.
const podWord = "object.metadata.?labels[?'" + annotation.Inject + "']" +
	".or(object.metadata.?annotations[?'" + annotation.Inject + "'])" +
	".or(object.metadata.?annotations[?'" + annotation.OSMInject + "']).orValue('')"

// notMirror is a CEL expression for a pod that is not a static pod's mirror.
const notMirror = "!object.metadata.?annotations[?'kubernetes.io/config.mirror'].hasValue()"

// Configurations returns what the API server must know to send pods and workloads
// to the handler. The three mutating webhooks have selectors that exclude each
// other, so a pod goes to at most one; a pod that opted out, and any pod of a
// namespace that never opted in, goes to none and so never waits for the mesh.
func Configurations(o Options) (*admissionregistrationv1.MutatingWebhookConfiguration, *admissionregistrationv1.ValidatingWebhookConfiguration) {
	mutating := &admissionregistrationv1.MutatingWebhookConfiguration{
		TypeMeta:   metav1.TypeMeta{APIVersion: admissionregistrationv1.SchemeGroupVersion.String(), Kind: "MutatingWebhookConfiguration"},
		ObjectMeta: metav1.ObjectMeta{Name: o.Name},
		Webhooks: []admissionregistrationv1.MutatingWebhook{
			o.mutating("on.inject.outrigger.dev", PathOn, nil,
				selector(annotation.Inject, metav1.LabelSelectorOpExists),
				selector(annotation.Inject, metav1.LabelSelectorOpNotIn, "disabled", "no", "false")),
			o.mutating("ask.inject.outrigger.dev", PathAsk, []admissionregistrationv1.MatchCondition{
				{Name: "asked", Expression: "(" + podWord + ") != ''"},
			},
				selector(annotation.Inject, metav1.LabelSelectorOpIn, "disabled", "no", "false")),
		},
	}
	if o.OSMMesh != "" {
		mutating.Webhooks = append(mutating.Webhooks, o.mutating("osm.inject.outrigger.dev", PathOSM, nil,
			o.byOSM()...))
	}
	validating := &admissionregistrationv1.ValidatingWebhookConfiguration{
		TypeMeta:   metav1.TypeMeta{APIVersion: admissionregistrationv1.SchemeGroupVersion.String(), Kind: "ValidatingWebhookConfiguration"},
		ObjectMeta: metav1.ObjectMeta{Name: o.Name},
		Webhooks: []admissionregistrationv1.ValidatingWebhook{
			o.validating("pods.validate.outrigger.dev", "object", rule("", []string{"pods"}, admissionregistrationv1.Create)),
			o.validating("workloads.validate.outrigger.dev", "object.spec.template",
				rule("apps", []string{"deployments", "statefulsets", "daemonsets"}, admissionregistrationv1.Create, admissionregistrationv1.Update),
				rule("batch", []string{"jobs"}, admissionregistrationv1.Create)),
			o.validating("cronjobs.validate.outrigger.dev", "object.spec.jobTemplate.spec.template",
				rule("batch", []string{"cronjobs"}, admissionregistrationv1.Create, admissionregistrationv1.Update)),
		},
	}
	validating.Webhooks = append(validating.Webhooks, o.refusing()...)
	return mutating, validating
}

// refusing returns the webhooks that refuse what could not be honoured. Selectors
// cannot say "or", so there is one for each way into the mesh; they exclude each
// other. A namespace's own annotations are read before its label is there.
func (o Options) refusing() []admissionregistrationv1.ValidatingWebhook {
	namespaces := rule("", []string{"namespaces"}, admissionregistrationv1.Create, admissionregistrationv1.Update)
	namespaces.Scope = new(admissionregistrationv1.ClusterScope)
	list := []admissionregistrationv1.ValidatingWebhook{
		o.refuse("namespaces", namespaces, nil, annotated()),
	}
	ways := []struct {
		name  string
		match []metav1.LabelSelectorRequirement
	}{
		{"mesh", []metav1.LabelSelectorRequirement{selector(annotation.Inject, metav1.LabelSelectorOpExists)}},
		{"osm", o.byOSM()},
	}
	if o.OSMMesh == "" {
		ways = ways[:1]
	}
	annotations := rule("", []string{"services", "pods"}, admissionregistrationv1.Create, admissionregistrationv1.Update)
	targets := rule("access.smi-spec.io", []string{"traffictargets"}, admissionregistrationv1.Create, admissionregistrationv1.Update)
	targets.APIVersions = []string{"v1alpha3"} // older ones come converted
	var off []admissionregistrationv1.MatchCondition
	if o.AnyTrafficTarget {
		// The webhook must not go: outriggerd has applied the caBundle of its entry,
		// so an upgrade by server-side apply would leave half of it there.
		off = append(off, admissionregistrationv1.MatchCondition{Name: "switched-on", Expression: "false"})
	}
	roots := rule("config.openservicemesh.io", []string{"meshrootcertificates"}, admissionregistrationv1.Create, admissionregistrationv1.Update)
	roots.APIVersions = []string{"v1alpha2"}
	list = append(list, o.refuse("roots", roots, &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
		selector("kubernetes.io/metadata.name", metav1.LabelSelectorOpIn, o.SystemNamespace),
	}}, nil))
	for _, way := range ways {
		list = append(list,
			o.refuse("annotations."+way.name, annotations, o.member(way.match...), annotated()),
			o.refuse("traffictargets."+way.name, targets, o.member(way.match...), off))
	}
	return list
}

// annotated keeps a webhook off objects without annotations of ours, off changes
// of anything else, and off mirror pods, which the kubelet runs whatever is said.
func annotated() []admissionregistrationv1.MatchCondition {
	return []admissionregistrationv1.MatchCondition{
		{Name: "mentions-the-mesh", Expression: "object.metadata.?annotations.orValue({}).exists(k, k.startsWith('" + annotation.Prefix + "'))"},
		{Name: "annotations-changed", Expression: "oldObject == null || object.metadata.?annotations != oldObject.metadata.?annotations"},
		{Name: "not-mirror", Expression: notMirror},
	}
}

// refuse returns a webhook that refuses objects. A mistake that got in is ignored
// and reported, so no object waits for the mesh.
func (o Options) refuse(name string, rule admissionregistrationv1.RuleWithOperations, match *metav1.LabelSelector, conditions []admissionregistrationv1.MatchCondition) admissionregistrationv1.ValidatingWebhook {
	return admissionregistrationv1.ValidatingWebhook{
		Name:                    name + ".refuse.outrigger.dev",
		ClientConfig:            o.client(PathRefuse),
		Rules:                   []admissionregistrationv1.RuleWithOperations{rule},
		FailurePolicy:           new(admissionregistrationv1.Ignore),
		MatchPolicy:             new(admissionregistrationv1.Equivalent),
		NamespaceSelector:       match,
		SideEffects:             new(admissionregistrationv1.SideEffectClassNone),
		TimeoutSeconds:          new(int32(3)),
		AdmissionReviewVersions: []string{"v1"},
		MatchConditions: append([]admissionregistrationv1.MatchCondition{
			{Name: "not-being-deleted", Expression: "!object.metadata.?deletionTimestamp.hasValue()"},
		}, conditions...),
	}
}

// member selects namespaces that may be in the mesh and match.
func (o Options) member(match ...metav1.LabelSelectorRequirement) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchExpressions: append([]metav1.LabelSelectorRequirement{
		selector("kubernetes.io/metadata.name", metav1.LabelSelectorOpNotIn, annotation.SystemNamespaces(o.SystemNamespace)...),
		selector(annotation.OSMIgnore, metav1.LabelSelectorOpDoesNotExist),
	}, match...)}
}

// byOSM selects namespaces that are in the mesh by OSM's label, as annotation.ByOSM
// does.
func (o Options) byOSM() []metav1.LabelSelectorRequirement {
	return []metav1.LabelSelectorRequirement{
		selector(annotation.OSMMonitoredBy, metav1.LabelSelectorOpIn, o.OSMMesh),
		selector(annotation.ControlPlane, metav1.LabelSelectorOpDoesNotExist),
		selector(annotation.Inject, metav1.LabelSelectorOpDoesNotExist),
	}
}

func (o Options) mutating(name, path string, conditions []admissionregistrationv1.MatchCondition, match ...metav1.LabelSelectorRequirement) admissionregistrationv1.MutatingWebhook {
	timeout := o.TimeoutSeconds
	if timeout == 0 {
		timeout = 10
	}
	return admissionregistrationv1.MutatingWebhook{
		Name:                    name,
		ClientConfig:            o.client(path),
		Rules:                   []admissionregistrationv1.RuleWithOperations{rule("", []string{"pods"}, admissionregistrationv1.Create)},
		FailurePolicy:           new(admissionregistrationv1.Fail),
		MatchPolicy:             new(admissionregistrationv1.Equivalent),
		NamespaceSelector:       o.member(match...),
		SideEffects:             new(admissionregistrationv1.SideEffectClassNone),
		TimeoutSeconds:          &timeout,
		AdmissionReviewVersions: []string{"v1"},
		ReinvocationPolicy:      new(admissionregistrationv1.IfNeededReinvocationPolicy),
		MatchConditions: append([]admissionregistrationv1.MatchCondition{
			{Name: "not-opted-out", Expression: "!(" + podWord + ").matches('^(?i:disabled|no|false)$')"},
			{Name: "not-host-network-unless-asked", Expression: "!object.spec.?hostNetwork.orValue(false) || (" + podWord + ") != ''"},
			{Name: "not-mirror", Expression: notMirror},
		}, conditions...),
	}
}

// validating warns whoever made the object at the CEL expression's pod. It sees
// every namespace, so that somebody who asks for a sidecar where there is no mesh
// is told; a condition keeps it off everything that says nothing about the mesh.
func (o Options) validating(name, pod string, rules ...admissionregistrationv1.RuleWithOperations) admissionregistrationv1.ValidatingWebhook {
	mentions := fmt.Sprintf("%[1]s.?metadata.?labels.orValue({}).exists(k, k.startsWith('outrigger.dev/')) || "+
		"%[1]s.?metadata.?annotations.orValue({}).exists(k, k.startsWith('outrigger.dev/') || k.startsWith('openservicemesh.io/'))", pod)
	return admissionregistrationv1.ValidatingWebhook{
		Name:                    name,
		ClientConfig:            o.client(PathValidate),
		Rules:                   rules,
		FailurePolicy:           new(admissionregistrationv1.Ignore),
		MatchPolicy:             new(admissionregistrationv1.Equivalent),
		SideEffects:             new(admissionregistrationv1.SideEffectClassNone),
		TimeoutSeconds:          new(int32(3)),
		AdmissionReviewVersions: []string{"v1"},
		MatchConditions: []admissionregistrationv1.MatchCondition{
			{Name: "mentions-the-mesh", Expression: mentions},
			{Name: "not-from-a-controller", Expression: "object.metadata.?ownerReferences.orValue([]).size() == 0"},
		},
	}
}

func (o Options) client(path string) admissionregistrationv1.WebhookClientConfig {
	if o.URL != "" {
		return admissionregistrationv1.WebhookClientConfig{URL: new(o.URL + path), CABundle: o.CABundle}
	}
	return admissionregistrationv1.WebhookClientConfig{
		Service: &admissionregistrationv1.ServiceReference{
			Namespace: o.SystemNamespace, Name: o.Service, Path: &path, Port: new(int32(443)),
		},
		CABundle: o.CABundle,
	}
}

func rule(group string, resources []string, operations ...admissionregistrationv1.OperationType) admissionregistrationv1.RuleWithOperations {
	return admissionregistrationv1.RuleWithOperations{
		Operations: operations,
		Rule: admissionregistrationv1.Rule{
			APIGroups: []string{group}, APIVersions: []string{"v1"}, Resources: resources,
			Scope: new(admissionregistrationv1.NamespacedScope),
		},
	}
}

func selector(key string, op metav1.LabelSelectorOperator, values ...string) metav1.LabelSelectorRequirement {
	return metav1.LabelSelectorRequirement{Key: key, Operator: op, Values: values}
}
