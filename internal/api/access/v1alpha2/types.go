// Package v1alpha2 exists for the CRD: it makes the API server serve
// TrafficTargets of this version too. Package conversion says what becomes of it,
// and package v1alpha3 has the kind that the mesh reads.
//
// +kubebuilder:object:generate=true
// +groupName=access.smi-spec.io
// +versionName=v1alpha2
package v1alpha2

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/outrigger-mesh/outrigger/internal/api/access/v1alpha3"
	"github.com/outrigger-mesh/outrigger/internal/api/status"
)

// A TrafficTarget lets its sources call its destination, as its rules say.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:shortName=tt
// +kubebuilder:subresource:status
// +kubebuilder:printcolumn:name=Accepted,type=string,JSONPath=`.status.conditions[?(@.type=="Accepted")].status`,description="Whether the mesh honours it as it is written."
type TrafficTarget struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +optional
	Spec TrafficTargetSpec `json:"spec"`
	// +optional
	Status status.Status `json:"status,omitzero"`
}

// A TrafficTargetSpec says who may call whom, and how.
type TrafficTargetSpec struct {
	// Destination is who is called. Its namespace must be that of the
	// TrafficTarget.
	Destination Destination `json:"destination"`
	// Rules are the allowed requests and ports, of the TrafficTarget's namespace.
	// +optional
	Rules []v1alpha3.Rule `json:"rules,omitempty"`
	// Sources are those who may call.
	// +optional
	Sources []v1alpha3.Subject `json:"sources,omitempty"`
}

// A Destination is a service account, or one port of its pods.
type Destination struct {
	v1alpha3.Subject `json:",inline"`
	// Port narrows the target to one port of the destination's pods. Later
	// versions say it by the annotation outrigger.dev/destination-port.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	Port int32 `json:"port,omitempty"`
}
