// Package status has what the mesh says about the objects that it reads. It is
// the same for all kinds.
//
// +kubebuilder:object:generate=true
package status

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// Accepted is the type of the mesh's own condition. It is true when the object is
// honoured as it is written; otherwise the reason and the message say what is not.
const Accepted = "Accepted"

// Reason is that of a true condition. A false one has the reason of a Problem of
// package ingest.
const Reason = "Accepted"

// A Status says what became of an object.
type Status struct {
	// Conditions of the object. Outrigger writes the type Accepted.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}
