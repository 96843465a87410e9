package webhook

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/outrigger-mesh/outrigger/injector"
	"github.com/outrigger-mesh/outrigger/internal/annotation"
)

// validate warns about a workload whose pods will not get the sidecar that they
// ask for. It refuses nothing: warnings about pods reach only the controller that
// makes them, so this is where a person hears of it.
func (h handler) validate(ctx context.Context, r *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
	response := allowed()
	pod, err := podOf(r)
	if err != nil {
		h.Log.Info("workload is not understood", "namespace", r.Namespace, "kind", r.Kind.Kind, "name", r.Name, "error", err.Error())
		return response
	}
	ns, err := h.namespace(ctx, r.Namespace)
	if err != nil {
		h.Log.V(1).Info("namespace is not known", "namespace", r.Namespace, "error", err.Error())
		return response
	}
	match := injector.MatchNamespace(ns, h.settings())
	verdict, _ := injector.Inject(injector.Request{Namespace: ns, Match: match, Pod: pod}, h.settings())
	if verdict.Surprising {
		response.Warnings = warnings(verdict)
	}
	if match != injector.NoMatch && r.Kind.Kind != "Pod" { // a Pod itself is refused
		response.Warnings = foretell(response.Warnings, pod.Annotations)
	}
	response.AuditAnnotations = map[string]string{auditReason: string(verdict.Reason)}
	return response
}

// foretell adds a warning for each annotation for which the workload's pods would
// be refused, unless one is about it already.
func foretell(warnings []string, annotations map[string]string) []string {
	said := strings.Join(warnings, "\n")
	for _, err := range annotation.CheckPod(annotations) {
		if fault := err.Error(); !strings.Contains(said, fault) {
			warnings = append(warnings, "outrigger: "+fault)
		}
	}
	return warnings
}

// podOf returns the pod that a workload would make.
func podOf(r *admissionv1.AdmissionRequest) (*corev1.Pod, error) {
	var template corev1.PodTemplateSpec
	var err error
	switch r.Kind.Kind {
	case "Pod":
		err = json.Unmarshal(r.Object.Raw, &template) // has the same two fields
	case "CronJob":
		var w struct {
			Spec struct {
				JobTemplate struct {
					Spec struct{ Template corev1.PodTemplateSpec }
				}
			}
		}
		err = json.Unmarshal(r.Object.Raw, &w)
		template = w.Spec.JobTemplate.Spec.Template
	case "Deployment", "StatefulSet", "DaemonSet", "Job":
		var w struct {
			Spec struct{ Template corev1.PodTemplateSpec }
		}
		err = json.Unmarshal(r.Object.Raw, &w)
		template = w.Spec.Template
	default:
		err = fmt.Errorf("no webhook is for %s", r.Kind.Kind)
	}
	if err != nil {
		return nil, fmt.Errorf("decode %s: %w", r.Kind.Kind, err)
	}
	return &corev1.Pod{ObjectMeta: template.ObjectMeta, Spec: template.Spec}, nil
}
