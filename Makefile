# Outrigger. `make` lists what there is. Everything installs what it needs; built
# tools are kept in the user's cache folder, so that a second run is quick.

SHELL := /bin/sh
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
TOOL    := $(GO) tool -modfile=tools/go.mod
CLUSTER := $(GO) run ./e2e/cluster
# The packages with tests that need root: network namespaces, an API server.
INTEGRATION := ./cmd/outrigger ./cmd/outrigger-init ./cmd/outriggerd ./internal/agent ./internal/controller ./internal/identity ./webhook ./e2e/cluster/local
# The kinds whose versions differ in shape.
CONVERTED := manifests/crds/access.smi-spec.io_traffictargets.yaml manifests/crds/specs.smi-spec.io_httproutegroups.yaml manifests/crds/specs.smi-spec.io_tcproutes.yaml
# One line with the time since the start for each step of a long target.
STEP     = @printf '\n== %4ds  %s\n' "$$(($$(date +%s) - $(START)))"
START   := $(shell date +%s)

##@ Start here

help: ## list the targets
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z0-9-]+:.*## / {printf "  %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: ## bring up a cluster, install the mesh and show what it does (first run: about 16 minutes)
	$(GO) run ./e2e/demo

demo-down: ## take the demo's cluster down
	$(CLUSTER) down

test: ## pass all tests, from nothing (with built tools about 40 minutes on two cores)
	$(STEP) "set up: install what is missing, build the tools (first run: about 19 minutes)"
	@$(MAKE) setup
	$(STEP) "formatting and generated files"
	@$(MAKE) check-format check-generate
	$(STEP) "lint"
	@$(MAKE) lint
	$(STEP) "unit tests with the race detector"
	@$(MAKE) unit
	$(STEP) "integration: real iptables, real Envoy, real API server"
	@$(MAKE) integration
	$(STEP) "end to end: a real cluster"
	@$(MAKE) e2e
	$(STEP) "everything passed"

##@ Develop

setup: ## install packages and build the tools that tests and demo need
	@$(CLUSTER) setup

build: ## build the binaries into bin/
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/ ./cmd/...

# The version of Go's FIPS 140-3 module that has been validated.
FIPS := v1.0.0

build-fips: ## build the binaries with Go's FIPS 140-3 module into bin/fips/
	CGO_ENABLED=0 GOFIPS140=$(FIPS) $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/fips/ ./cmd/...

unit: ## unit tests, with the race detector
	$(GO) test -race ./...

integration: ## tests that need root: network namespaces with iptables, an API server, real Envoys
	$(GO) test -tags netns,integration -count=1 -timeout 20m -p 1 $(INTEGRATION)
	$(GO) test -tags integration -count=1 -timeout 20m -run SPIRE ./cmd/outrigger-agent # its others are unit tests

e2e: ## end-to-end tests on a real cluster, or on KUBECONFIG with IMAGE_PREFIX
	$(GO) test -tags e2e -count=1 -timeout 45m -v ./e2e

bench: ## benchmarks of the pure packages
	$(GO) test -run '^$$' -bench . -benchmem ./injector ./internal/mesh ./internal/ingest ./internal/xds ./internal/iptables

fuzz: ## fuzz each target for FUZZTIME (10s)
	@set -e; for f in $$(grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n1 dirname | sort -u); do \
	  for t in $$(grep -hoE '^func Fuzz[A-Za-z0-9]+' $$f/*_test.go | awk '{print $$2}'); do \
	    echo "$$f $$t"; $(GO) test -run '^$$' -fuzz "^$$t$$" -fuzztime $(or $(FUZZTIME),10s) $$f; done; done

lint: ## golangci-lint
	$(TOOL) golangci-lint run ./...

format: ## format the code
	$(TOOL) golangci-lint fmt ./...

check-format:
	@out=$$(gofmt -l $$(git ls-files '*.go')); if [ -n "$$out" ]; then echo "not formatted (make format):"; echo "$$out"; exit 1; fi

generate: ## deep copies, CRDs and the page about annotations
	$(TOOL) controller-gen object paths=./internal/api/...
	$(TOOL) controller-gen crd paths=./internal/api/... output:crd:dir=manifests/crds
	sed -i '/^spec:$$/r internal/api/conversion/webhook.yaml' $(CONVERTED)
	$(GO) run ./internal/annotation/document > docs/annotations.md

# Apart from generate, so that nothing else depends on protoc and its version,
# which it writes into the files.
generate-protocol: ## the signing protocol; needs protoc (Debian's protobuf-compiler)
	@command -v protoc >/dev/null || { echo "protoc is missing: apt-get install protobuf-compiler"; exit 1; }
	$(GO) build -modfile=tools/go.mod -o bin/tools/ google.golang.org/protobuf/cmd/protoc-gen-go google.golang.org/grpc/cmd/protoc-gen-go-grpc
	cd internal/signing && PATH="$(CURDIR)/bin/tools:$$PATH" protoc --go_out=paths=source_relative:. --go-grpc_out=paths=source_relative:. signing.proto

check-generate:
	@$(MAKE) generate >/dev/null && git diff --exit-code -- internal/api manifests/crds docs/annotations.md || { echo "generated files are stale: commit what make generate writes"; exit 1; }

golden: ## rewrite the golden files and show what changed
	$(GO) test $$(grep -rl --include='*_test.go' 'outrigger/internal/golden"' . | xargs -n1 dirname | sort -u) -update
	git diff --stat -- '*.golden*'

manifests: ## render the plain YAML of an installation into dist/outrigger.yaml
	@mkdir -p dist
	$(GO) run ./cmd/outrigger install --dry-run > dist/outrigger.yaml

images: ## build the images as tarballs into dist/images, or push them: make images PUSH=registry/prefix TAG=v1
	$(GO) run ./e2e/images --out dist/images $(if $(PUSH),--push $(PUSH)) $(if $(TAG),--tag $(TAG))

##@ A cluster of your own on this machine

cluster-up: ## start a real single-node Kubernetes
	$(CLUSTER) up

cluster-down: ## stop it and remove what it left
	$(CLUSTER) down

.PHONY: help demo demo-down test setup build build-fips unit integration e2e bench fuzz lint format check-format generate generate-protocol check-generate golden manifests images cluster-up cluster-down
