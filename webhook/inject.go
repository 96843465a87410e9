package webhook

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/outrigger-mesh/outrigger/injector"
)

// auditReason is the key under which the API server's audit log has the reason
// of a verdict, after the webhook's name.
const auditReason = "reason"

// inject answers for a pod that is about to be created in a namespace that
// matched.
func (h handler) inject(ctx context.Context, match injector.Match, r *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
	want := metav1.GroupVersionKind{Version: "v1", Kind: "Pod"}
	if r.Kind != want || r.Operation != admissionv1.Create || r.SubResource != "" {
		return errored(http.StatusBadRequest, fmt.Sprintf("this webhook is for CREATE of pods, not %s of %s %s", r.Operation, r.Kind.Kind, r.SubResource))
	}
	var pod corev1.Pod
	if err := json.Unmarshal(r.Object.Raw, &pod); err != nil {
		return errored(http.StatusBadRequest, fmt.Sprintf("decode pod: %v", err))
	}
	ns, err := h.namespace(ctx, r.Namespace)
	switch {
	case apierrors.IsNotFound(err) && match == injector.MatchOSM:
		// Only the namespace's annotations, which no selector can see, say whether
		// its pods are injected. To skip the pod would leave it outside the mesh.
		return errored(http.StatusServiceUnavailable, fmt.Sprintf("namespace %s is not known yet; try again", r.Namespace))
	case err != nil && !apierrors.IsNotFound(err):
		return errored(http.StatusInternalServerError, fmt.Sprintf("look up namespace %s: %v", r.Namespace, err))
	}

	verdict, ops := injector.Inject(injector.Request{Namespace: ns, Match: match, Pod: &pod}, h.settings())
	h.Log.V(1).Info("pod judged", "namespace", r.Namespace, "pod", podName(r, &pod), "outcome", verdict.Outcome.String(), "reason", string(verdict.Reason))
	injectedBefore := verdict.Outcome == injector.Injected && len(ops) == 0
	if dryRun := r.DryRun != nil && *r.DryRun; !dryRun && !injectedBefore {
		h.Observe(verdict)
	}
	response := allowed()
	switch {
	case verdict.Outcome == injector.Denied:
		response = errored(http.StatusForbidden, verdict.Message)
	case verdict.Surprising:
		response.Warnings = warnings(verdict)
	case len(ops) > 0:
		patch, err := json.Marshal(ops)
		if err != nil {
			return errored(http.StatusInternalServerError, fmt.Sprintf("encode patch: %v", err))
		}
		response.Patch, response.PatchType = patch, new(admissionv1.PatchTypeJSONPatch)
	}
	response.AuditAnnotations = map[string]string{auditReason: string(verdict.Reason)}
	return response
}

// namespace returns what is known of a namespace. Even with an error it has the
// name, which is enough where the path has said the rest.
func (h handler) namespace(ctx context.Context, name string) (injector.Namespace, error) {
	ns, err := h.Namespaces.Namespace(ctx, name)
	if err != nil {
		return injector.Namespace{Name: name}, err
	}
	return injector.Namespace{Name: name, Labels: ns.Labels, Annotations: ns.Annotations}, nil
}

// podName is for logs: most pods have no name yet.
func podName(r *admissionv1.AdmissionRequest, pod *corev1.Pod) string {
	switch {
	case r.Name != "":
		return r.Name
	case pod.Name != "":
		return pod.Name
	default:
		return pod.GenerateName + "*"
	}
}

// warnings says a verdict to a person, one warning for each fault.
func warnings(v injector.Verdict) []string {
	var list []string
	for line := range strings.SplitSeq(v.Message, "\n") {
		list = append(list, "outrigger: "+line)
	}
	return list
}
