// Package internal is the map of Outrigger's code. It holds no code, only the
// test that keeps the layers apart.
//
// Read in this order; each package's own doc says what it is not and where to
// go next.
//
//	mesh        PURE   the model: Snapshot, View
//	annotation  PURE   every key that a user may write
//	ingest      PURE   Kubernetes and SMI objects -> Snapshot and Problems
//	xds         PURE   View -> encoded Envoy resources, and their differences
//	why         PURE   a call or a pod -> the verdict, its reason, what to change
//	manifest    PURE   YAML -> the objects that ingest reads, without a cluster
//	rotation    PURE   authorities, and the safe way from one to another
//	sidecar     PURE   which pods have a proxy
//	iptables    PURE   redirect settings -> iptables-restore text
//	signing            the call by which an agent gets its certificate
//	api                the SMI kinds: types and deep copies
//	api/conversion PURE an SMI object -> the same in another version
//	controller  SHELL  watch, debounce, ingest, publish; Problems -> Events
//	identity    SHELL  who is calling, and its certificate; the CA; trust
//	vault       SHELL  the calls to a Vault server, for identity
//	server      SHELL  delta ADS and signing over gRPC
//	agent       SHELL  in the pod: key, certificate, Envoy, probes
//	limit              how often each caller may do something
//	golden      TEST   compare with testdata
//	scenario    TEST   the pure pipeline over whole stories
//	proof       TEST   written rules, real Envoys and why agree on random meshes
//
// Beside them, injector (Decide and Patch) and bootstrap are pure, webhook is
// their shell, and cmd wires everything. Two flows, and nothing runs against
// them:
//
//	cluster -> controller -> ingest.Build -> mesh.Snapshot -> View -> xds.Set -> server -> Envoy
//	AdmissionReview -> webhook -> injector.Decide -> injector.Patch -> JSON patch
package internal
