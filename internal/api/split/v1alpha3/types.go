// Package v1alpha3 exists for the CRD: it makes the API server serve TrafficSplits
// of this version too.
// Package v1alpha4 has the kind that the mesh reads.
//
// +kubebuilder:object:generate=true
// +groupName=split.smi-spec.io
// +versionName=v1alpha3
package v1alpha3

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/outrigger-mesh/outrigger/internal/api/split/v1alpha4"
	"github.com/outrigger-mesh/outrigger/internal/api/status"
)

// A TrafficSplit shares the calls of a Service out among others.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:shortName=ts
// +kubebuilder:subresource:status
// +kubebuilder:printcolumn:name=Service,type=string,JSONPath=`.spec.service`,description="The Service whose calls are shared out."
// +kubebuilder:printcolumn:name=Accepted,type=string,JSONPath=`.status.conditions[?(@.type=="Accepted")].status`,description="Whether the mesh honours it as it is written."
type TrafficSplit struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +optional
	Spec v1alpha4.TrafficSplitSpec `json:"spec"`
	// +optional
	Status status.Status `json:"status,omitzero"`
}
