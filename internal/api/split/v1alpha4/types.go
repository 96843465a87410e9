// Package v1alpha4 holds SMI's split kind: how the calls of a Service are shared
// out. The mesh reads this version. The older ones that it serves have the same
// schema, so that the API server converts between them without help.
//
// +kubebuilder:object:generate=true
// +groupName=split.smi-spec.io
// +versionName=v1alpha4
package v1alpha4

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/outrigger-mesh/outrigger/internal/api/status"
	"github.com/outrigger-mesh/outrigger/internal/api/whole"
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
	Spec TrafficSplitSpec `json:"spec"`
	// +optional
	Status status.Status `json:"status,omitzero"`
}

// A TrafficSplitSpec says whose calls go where.
type TrafficSplitSpec struct {
	// Service is the one whose calls are shared out (the apex), in the
	// TrafficSplit's namespace: name, name.namespace, or the full DNS name.
	Service string `json:"service"`
	// Matches name HTTPRouteGroups: only the requests that they describe are
	// shared out. If empty, all are.
	// +optional
	Matches []MatchReference `json:"matches,omitempty"`
	// Backends are the Services that get a share.
	Backends []Backend `json:"backends"`
}

// A MatchReference names an object that describes requests.
type MatchReference struct {
	// APIGroup of the object: specs.smi-spec.io.
	// +optional
	APIGroup string `json:"apiGroup,omitempty"`
	// Kind of the object.
	// +kubebuilder:validation:Enum=HTTPRouteGroup
	Kind string `json:"kind"`
	// Name of the object.
	Name string `json:"name"`
}

// A Backend gets a share of the calls.
type Backend struct {
	// Service in the TrafficSplit's namespace.
	Service string `json:"service"`
	// Weight of the share, relative to the others.
	Weight whole.Number `json:"weight"`
}

// A TrafficSplitList is a list of TrafficSplits.
//
// +kubebuilder:object:root=true
type TrafficSplitList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []TrafficSplit `json:"items"`
}
