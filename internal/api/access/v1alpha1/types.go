// Package v1alpha1 exists for the CRD: it makes the API server serve
// TrafficTargets of this version too. Package conversion says what becomes of it,
// and package v1alpha3 has the kind that the mesh reads.
//
// +kubebuilder:object:generate=true
// +groupName=access.smi-spec.io
// +versionName=v1alpha1
package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/outrigger-mesh/outrigger/internal/api/access/v1alpha2"
	"github.com/outrigger-mesh/outrigger/internal/api/access/v1alpha3"
	"github.com/outrigger-mesh/outrigger/internal/api/status"
)

// A TrafficTarget lets its sources call its destination, as its specs say.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:shortName=tt
// +kubebuilder:subresource:status
// +kubebuilder:printcolumn:name=Accepted,type=string,JSONPath=`.status.conditions[?(@.type=="Accepted")].status`,description="Whether the mesh honours it as it is written."
type TrafficTarget struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// Destination is who is called. Its namespace must be that of the
	// TrafficTarget.
	Destination v1alpha2.Destination `json:"destination"`
	// Specs are the allowed requests and ports, of the TrafficTarget's namespace.
	// +optional
	Specs []v1alpha3.Rule `json:"specs,omitempty"`
	// Sources are those who may call.
	// +optional
	Sources []v1alpha3.Subject `json:"sources,omitempty"`
	// +optional
	Status status.Status `json:"status,omitzero"`
}
