// Package v1alpha4 holds SMI's specs kinds: which requests, and which ports.
//
// +kubebuilder:object:generate=true
// +groupName=specs.smi-spec.io
// +versionName=v1alpha4
package v1alpha4

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/outrigger-mesh/outrigger/internal/api/status"
	"github.com/outrigger-mesh/outrigger/internal/api/whole"
)

// A HTTPRouteGroup describes requests, for TrafficTargets and TrafficSplits to
// name. By itself it allows nothing.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:shortName=htr
// +kubebuilder:storageversion
// +kubebuilder:subresource:status
// +kubebuilder:printcolumn:name=Accepted,type=string,JSONPath=`.status.conditions[?(@.type=="Accepted")].status`,description="Whether the mesh honours it as it is written."
type HTTPRouteGroup struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +optional
	Spec HTTPRouteGroupSpec `json:"spec"`
	// +optional
	Status status.Status `json:"status,omitzero"`
}

// A HTTPRouteGroupSpec is a list of matches.
type HTTPRouteGroupSpec struct {
	// Matches describe requests, each under a name.
	Matches []HTTPMatch `json:"matches"`
}

// A HTTPMatch describes requests: all that is given must hold.
type HTTPMatch struct {
	// Name is what TrafficTargets call this match by.
	Name string `json:"name"`
	// PathRegex is a regular expression (RE2) that the whole path must match,
	// without the query. If empty, every path does.
	// +optional
	PathRegex string `json:"pathRegex,omitempty"`
	// Methods are the allowed methods. If empty or with "*", all are.
	// +optional
	// +kubebuilder:validation:items:Enum="*";GET;HEAD;PUT;POST;DELETE;CONNECT;OPTIONS;TRACE;PATCH
	Methods []string `json:"methods,omitempty"`
	// Headers are regular expressions (RE2) that the whole values of headers must
	// match, by header name. All of them must.
	// +optional
	Headers []map[string]string `json:"headers,omitempty"`
}

// A HTTPRouteGroupList is a list of HTTPRouteGroups.
//
// +kubebuilder:object:root=true
type HTTPRouteGroupList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []HTTPRouteGroup `json:"items"`
}

// A TCPRoute describes connections, for TrafficTargets to name. By itself it
// allows nothing.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:shortName=tr
// +kubebuilder:storageversion
// +kubebuilder:subresource:status
// +kubebuilder:printcolumn:name=Accepted,type=string,JSONPath=`.status.conditions[?(@.type=="Accepted")].status`,description="Whether the mesh honours it as it is written."
type TCPRoute struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +optional
	Spec TCPRouteSpec `json:"spec,omitzero"`
	// +optional
	Status status.Status `json:"status,omitzero"`
}

// A TCPRouteSpec describes connections.
type TCPRouteSpec struct {
	// Matches describe connections. Without them the route opens nothing.
	// +optional
	Matches TCPMatch `json:"matches,omitzero"`
}

// A TCPMatch describes connections by port.
type TCPMatch struct {
	// Name is not used.
	// +optional
	Name string `json:"name,omitempty"`
	// Ports are ports of the server's pods, not of the Service.
	Ports []whole.Number `json:"ports"`
}

// A TCPRouteList is a list of TCPRoutes.
//
// +kubebuilder:object:root=true
type TCPRouteList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []TCPRoute `json:"items"`
}
