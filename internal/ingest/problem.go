package ingest

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// A Problem is something that a user wrote and that the mesh cannot honour.
type Problem struct {
	Object  ObjectRef `json:"object"`
	Reason  Reason    `json:"reason"`
	Message string    `json:"message"` // for the user: the same text for the same fault, every time
}

// An ObjectRef names the object that a Problem is about.
type ObjectRef struct {
	APIVersion string    `json:"apiVersion"`
	Kind       string    `json:"kind"`
	Namespace  string    `json:"namespace,omitempty"`
	Name       string    `json:"name"`
	UID        types.UID `json:"uid,omitempty"`
}

// String returns "Kind namespace/name".
func (o ObjectRef) String() string {
	if o.Namespace == "" {
		return o.Kind + " " + o.Name
	}
	return o.Kind + " " + o.Namespace + "/" + o.Name
}

// A Reason says for machines what kind of Problem it is. Reasons are never
// reworded.
type Reason string

// The reasons.
const (
	// BadAnnotation: a value that its key does not allow, a key of ours that is not
	// known, or one on the wrong kind of object. The message says what holds.
	BadAnnotation Reason = "BadAnnotation"
	// ProtocolConflict: a pod's port gets different protocols from two Services.
	// The first declared one by name holds.
	ProtocolConflict Reason = "ProtocolConflict"
	// PolicyConflict: a pod's port gets different traffic policies, or demands for
	// mutual TLS, from several Services. The strictest holds.
	PolicyConflict Reason = "PolicyConflict"
	// NoEffect: an annotation that changes nothing beside what else is said.
	NoEffect Reason = "NoEffect"
	// ReservedPort: a Service leads to a port that the proxy itself uses. The
	// Service port is left out.
	ReservedPort Reason = "ReservedPort"

	// OtherNamespace: a TrafficTarget or TrafficSplit names a destination, apex or
	// backend outside its own namespace. The object or the backend is left out.
	OtherNamespace Reason = "OtherNamespace"
	// UnsupportedKind: a kind of subject or rule that the mesh does not know. A
	// source or a split's match is left out; otherwise the object is.
	UnsupportedKind Reason = "UnsupportedKind"
	// NoSources: a TrafficTarget without a usable source. It allows nothing.
	NoSources Reason = "NoSources"
	// RouteNotFound: an HTTPRouteGroup or TCPRoute that does not exist in the
	// object's namespace. It allows nothing.
	RouteNotFound Reason = "RouteNotFound"
	// NoMatches: a rule that lists no match of its HTTPRouteGroup. It allows
	// nothing.
	NoMatches Reason = "NoMatches"
	// MatchNotFound: a match that its HTTPRouteGroup does not have, or that is
	// faulty there. It allows nothing.
	MatchNotFound Reason = "MatchNotFound"
	// NothingAllowed: a TrafficTarget whose HTTP rules, or whose TCP rules, come to
	// nothing. It is left out whole, because each kind narrows the other.
	NothingAllowed Reason = "NothingAllowed"
	// NoPorts: a TCPRoute that opens no port, because it lists none, or not the one
	// that the TrafficTarget is narrowed to.
	NoPorts Reason = "NoPorts"
	// BadMatch: a faulty match in an HTTPRouteGroup. It is left out.
	BadMatch Reason = "BadMatch"
	// BadPort: a number in a TCPRoute that is no port. It is left out.
	BadPort Reason = "BadPort"

	// ApexNotFound: the Service that a TrafficSplit splits does not exist. The
	// split is left out.
	ApexNotFound Reason = "ApexNotFound"
	// SplitConflict: an older TrafficSplit splits the same Service. This one is
	// left out.
	SplitConflict Reason = "SplitConflict"
	// PortNotSplit: a port of the apex whose connections a split cannot share out.
	// They go to the apex.
	PortNotSplit Reason = "PortNotSplit"
	// BackendNotFound: a backend Service that does not exist. Its share goes to
	// the others.
	BackendNotFound Reason = "BackendNotFound"
	// BackendUnfit: a backend that cannot take the apex's traffic: it has no such
	// port, another protocol, or is headless. Its share goes to the others.
	BackendUnfit Reason = "BackendUnfit"
	// BackendNotAllowed: callers of the split that may not call one of its
	// backends. Their share goes to the others.
	BackendNotAllowed Reason = "BackendNotAllowed"
	// BadWeight: a weight that is negative, not whole, or too large to be exact. The backend is left out.
	BadWeight Reason = "BadWeight"

	// BadMeshConfig: a value of OSM's MeshConfig that is not allowed. The message says
	// what holds.
	BadMeshConfig Reason = "BadMeshConfig"
)

type problems []Problem

func (p *problems) add(object ObjectRef, reason Reason, format string, args ...any) {
	*p = append(*p, Problem{Object: object, Reason: reason, Message: fmt.Sprintf(format, args...)})
}

func (p problems) sorted() []Problem {
	slices.SortFunc(p, func(a, b Problem) int {
		return cmp.Or(
			strings.Compare(a.Object.Kind, b.Object.Kind),
			strings.Compare(a.Object.Namespace, b.Object.Namespace),
			strings.Compare(a.Object.Name, b.Object.Name),
			strings.Compare(string(a.Reason), string(b.Reason)),
			strings.Compare(a.Message, b.Message),
		)
	})
	return slices.Compact(p)
}

// ref names an object of a kind. What informers hold often lacks its own kind.
func ref(apiVersion, kind string, o metav1.Object) ObjectRef {
	return ObjectRef{APIVersion: apiVersion, Kind: kind, Namespace: o.GetNamespace(), Name: o.GetName(), UID: o.GetUID()}
}
