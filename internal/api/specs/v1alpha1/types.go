// Package v1alpha1 exists for the CRDs: it makes the API server serve
// HTTPRouteGroups and TCPRoutes of this version too. Package conversion says what
// becomes of them, and package v1alpha4 has the kinds that the mesh reads.
//
// +kubebuilder:object:generate=true
// +groupName=specs.smi-spec.io
// +versionName=v1alpha1
package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/outrigger-mesh/outrigger/internal/api/specs/v1alpha4"
	"github.com/outrigger-mesh/outrigger/internal/api/status"
)

// A HTTPRouteGroup describes requests, for TrafficTargets and TrafficSplits to
// name. By itself it allows nothing.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:shortName=htr
// +kubebuilder:subresource:status
// +kubebuilder:printcolumn:name=Accepted,type=string,JSONPath=`.status.conditions[?(@.type=="Accepted")].status`,description="Whether the mesh honours it as it is written."
type HTTPRouteGroup struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// Matches describe requests, each under a name.
	Matches []v1alpha4.HTTPMatch `json:"matches"`
	// +optional
	Status status.Status `json:"status,omitzero"`
}

// A TCPRoute describes connections, for TrafficTargets to name: those to the port
// of the TrafficTarget's destination. By itself it allows nothing.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:shortName=tr
// +kubebuilder:subresource:status
// +kubebuilder:printcolumn:name=Accepted,type=string,JSONPath=`.status.conditions[?(@.type=="Accepted")].status`,description="Whether the mesh honours it as it is written."
type TCPRoute struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// Spec is that of later versions: this one describes connections by nothing.
	// +optional
	Spec v1alpha4.TCPRouteSpec `json:"spec,omitzero"`
	// +optional
	Status status.Status `json:"status,omitzero"`
}
