module github.com/outrigger-mesh/outrigger/e2e/tools/spire

go 1.26.0

// Names the version; its programs are built from a copy of the module, where its
// own go.mod counts. So go mod tidy has nothing to say here.
require github.com/spiffe/spire v1.13.3
