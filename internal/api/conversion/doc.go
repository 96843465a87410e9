// Package conversion says an SMI object in another version of its kind.
//
//	TrafficTarget   v1alpha1 has everything at the top, and rules are called specs;
//	                v1alpha1 and v1alpha2 have a port in the destination
//	HTTPRouteGroup  v1alpha1 and v1alpha2 have matches at the top
//	TCPRoute        the versions before v1alpha4 list no ports, and mean the port of
//	                the TrafficTarget's destination
//	TrafficSplit    v1alpha1 has no matches; the shape is one
//
// Nothing is lost: what a later version has no field for is an annotation there,
// which the mesh reads, and what an older one has no field for it gets. What no
// version can say is an error.
//
// It is used where the API server asks (package webhook) and where YAML is read
// without one (package manifest). It knows shapes only; what objects mean is for
// package ingest.
package conversion
