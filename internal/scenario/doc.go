// Package scenario runs the pure pipeline over stories: clusters as a user would
// write them, with what the mesh makes of them in golden files beside.
//
//	testdata/<what-the-story-shows>/
//	    README.md              what the user asked for, and what must happen
//	    in.yaml                the cluster
//	    mesh.yaml              the mesh's settings, where they differ from the default
//	    snapshot.golden.yaml   the model
//	    problems.golden.yaml   what cannot be honoured
//	    <namespace>.<pod>/     one proxy's part of it; replicas share the first's
//	        view.golden.yaml
//
// Each story is made by the stage before, so none can drift from it. To add one,
// add a folder with README.md and in.yaml and run go test ./internal/scenario
// -update. [Stories] is for other tests that want the same clusters.
package scenario
