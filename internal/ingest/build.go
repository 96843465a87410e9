package ingest

import (
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	accessv1alpha3 "github.com/outrigger-mesh/outrigger/internal/api/access/v1alpha3"
	specsv1alpha4 "github.com/outrigger-mesh/outrigger/internal/api/specs/v1alpha4"
	splitv1alpha4 "github.com/outrigger-mesh/outrigger/internal/api/split/v1alpha4"
	"github.com/outrigger-mesh/outrigger/internal/mesh"
)

// Objects is all that the mesh reads from the cluster at one moment, in any
// order. The objects belong to the informers' caches and are not modified.
type Objects struct {
	Namespaces      []*corev1.Namespace
	Nodes           []*corev1.Node // for their zones
	Pods            []*corev1.Pod
	Services        []*corev1.Service
	EndpointSlices  []*discoveryv1.EndpointSlice
	TrafficTargets  []*accessv1alpha3.TrafficTarget
	HTTPRouteGroups []*specsv1alpha4.HTTPRouteGroup
	TCPRoutes       []*specsv1alpha4.TCPRoute
	TrafficSplits   []*splitv1alpha4.TrafficSplit
	MeshConfigs     []*unstructured.Unstructured // of these one counts, see [MeshConfigName]
}

// Options hold for the whole mesh. TrustDomain is required.
type Options struct {
	// Mode and AllowEgress hold where a namespace does not say otherwise. Their
	// zero values are the strict ones.
	Mode        mesh.Mode
	AllowEgress bool

	TrustDomain   string
	ClusterDomain string // the DNS domain of Services; for apex names written in full
	TrustBundle   string // PEM
	AlsoTrusted   []mesh.TrustDomain
	OldTLS        bool // clients of the mesh's servers may speak TLS 1.2, where the MeshConfig does not say
	ServiceCIDRs  []netip.Prefix
	Tracing       *mesh.Tracing // nil is none

	// OSMMeshName is the OSM mesh whose namespaces are ours too; empty is none.
	OSMMeshName string
	// SystemNamespace is our own, which is never part of the mesh.
	SystemNamespace string
}

// Build returns the Snapshot that objs describe, and what is wrong with them,
// sorted. The same objects in another order make the same bytes.
//
// A faulty object is left out and reported; it never stops the rest. Leaving one
// out makes the mesh stricter or plainer, never more open. Build panics when what
// it made is not a Snapshot, which is a defect of its own or of opts, never of
// objs.
func Build(objs Objects, opts Options) (*mesh.Snapshot, []Problem) {
	b := &builder{objs: objs, opts: opts}
	b.parts.Settings = mesh.Settings{
		TrustDomain:   opts.TrustDomain,
		ClusterDomain: opts.ClusterDomain,
		TrustBundle:   opts.TrustBundle,
		AlsoTrusted:   opts.AlsoTrusted,
		OldTLS:        opts.OldTLS,
		ServiceCIDRs:  opts.ServiceCIDRs,
		Tracing:       opts.Tracing,
	}
	b.meshConfig()
	b.nodes()
	b.namespaces()
	b.pods()
	b.services()
	b.access()
	b.serviceRanges()
	b.workloads()
	b.routes()
	b.targets()
	b.splits()
	snap, err := mesh.NewSnapshot(b.parts)
	if err != nil {
		panic(fmt.Sprintf("ingest: %v", err))
	}
	return snap, b.found.sorted()
}

// A builder holds what earlier steps leave for later ones.
type builder struct {
	objs  Objects
	opts  Options
	parts mesh.Parts
	found problems

	inMesh  map[string]mesh.Namespace
	traffic map[string]mesh.Traffic   // what the namespaces of the mesh say of their Services
	logs    map[string]mesh.AccessLog // likewise, of what their pods log
	zones   map[string]string         // of nodes
	// What namespaces and Services of the mesh say about access, who is spoken of
	// by which TrafficTarget, and the policies that come of it.
	namespaceWords map[string]*namespaceWord
	serviceWords   map[mesh.ServiceName]*serviceWord
	spokenOf       map[mesh.Identity]string
	policies       map[string]*mesh.PortPolicy // by content
	targetPods     map[mesh.PortName][]targetPod
	// byName has every pod of the mesh's namespaces, byLabel those that have not
	// ended, under each of their labels.
	byName map[podName]*pod
	// sidecarAt has the addresses of all of them, and whether a pod with a sidecar
	// is there.
	sidecarAt map[netip.Addr]bool
	proxyAt   map[netip.Addr]*pod // those with a proxy, by address
	byLabel   map[podLabel][]*pod
	// ports has the modelled ports of a Service of the mesh.
	ports map[mesh.ServiceName][]*mesh.Service
	// groups and tcpRoutes have what the routes of the mesh's namespaces allow.
	groups    map[routeName]group
	tcpRoutes map[routeName]tcpRoute
	granted   map[mesh.Identity][]mesh.Identity // who has a grant, by server
}
