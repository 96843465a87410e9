// Package proof holds that the written rules of policy, the Envoys that the mesh
// configures, and the answers of package why say the same.
//
// All of it is tests. policy_test.go, and service_test.go for what leads where, read
// objects as a user reads the documentation, with no code of the mesh in them;
// random_test.go makes small meshes; why_test.go compares over thousands of them, and envoy_test.go over some with real
// Envoys, through the caller's proxy and, as a hostile caller would, past it. The
// meshes that once told the three apart are in testdata.
//
// A failure prints its seed and its mesh, made as small as can be:
//
//	go test ./internal/proof -seed 17 -meshes 1
package proof
