// Package v1alpha3 holds SMI's access kinds: who may call whom.
//
// +kubebuilder:object:generate=true
// +groupName=access.smi-spec.io
// +versionName=v1alpha3
package v1alpha3

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/outrigger-mesh/outrigger/internal/api/status"
)

// A TrafficTarget lets its sources call its destination, as its rules say.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:shortName=tt
// +kubebuilder:storageversion
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
	Destination Subject `json:"destination"`
	// Rules are the allowed requests and ports, of the TrafficTarget's namespace.
	Rules []Rule `json:"rules"`
	// Sources are those who may call.
	Sources []Subject `json:"sources"`
}

// A Subject names a service account.
type Subject struct {
	// Kind is ServiceAccount. The mesh knows no other.
	Kind string `json:"kind"`
	// Name of the service account.
	Name string `json:"name"`
	// Namespace of the service account. If empty, that of the TrafficTarget.
	// +optional
	Namespace string `json:"namespace,omitempty"`
}

// A Rule names an object that describes requests or ports.
type Rule struct {
	// Kind of the object.
	// +kubebuilder:validation:Enum=HTTPRouteGroup;TCPRoute;UDPRoute
	Kind string `json:"kind"`
	// Name of the object.
	Name string `json:"name"`
	// Matches are those of an HTTPRouteGroup that are meant, by name. None is
	// none.
	// +optional
	Matches []string `json:"matches,omitempty"`
}

// A TrafficTargetList is a list of TrafficTargets.
//
// +kubebuilder:object:root=true
type TrafficTargetList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []TrafficTarget `json:"items"`
}
