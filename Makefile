# Kiln. `make` alone lists the targets.
# Needs Go and git; everything else is fetched or named by the target that needs it.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

BIN            := $(CURDIR)/bin
CACHE          := $(CURDIR)/.cache
GOLANGCI       := v2.15.0
GOVULNCHECK    := v1.9.0
BUILDKIT       := v0.30.0
FUZZTIME       ?= 30s
CHAOS_SEEDS    ?= 1 2 3
CHAOS_DURATION ?= 10m
CHAOS_REQUESTS ?= 1000
CHAOS_KILLS    ?= 50
TESTFLAGS      ?=
PKGS           ?= ./...
DURATIONS      := $(CACHE)/ci-durations

.PHONY: help
help: ## List the targets
	@awk 'BEGIN { FS = ":.*## " } /^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# ---------------------------------------------------------------- building

.PHONY: build
build: $(BIN)/kaniko-executor ## Build bin/kiln, bin/kilnd, bin/kiln-init and bin/kaniko-executor (static)
	@CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o $(BIN)/ ./cmd/kiln ./cmd/kilnd ./cmd/kiln-init
	CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o $(BIN)/kiln-demo ./deploy/demo

# The executor has a module of its own: its dependencies never touch Kiln's.
$(BIN)/kaniko-executor: deploy/kaniko/go.mod deploy/kaniko/go.sum
	@echo "building the Kaniko executor (about 90 s the first time)"
	mkdir -p $(BIN)
	cd deploy/kaniko
	CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o $@ github.com/osscontainertools/kaniko/cmd/executor
	touch $@

# Images of several machines become one: make image PLATFORMS="linux/amd64 linux/arm64"
PLATFORMS      ?= linux/$(shell go env GOARCH)
PUSH           ?=
comma          := ,

.PHONY: image
image: $(foreach p,$(PLATFORMS),dist/$(subst /,-,$p)/kiln) ## Assemble dist/kiln-image.tar; PUSH=REF pushes it too
	@go run ./deploy/image kiln $(foreach p,$(PLATFORMS),-binary $p=dist/$(subst /,-,$p)/kiln$(comma)dist/$(subst /,-,$p)/kilnd$(comma)dist/$(subst /,-,$p)/kiln-init) -o dist/kiln-image.tar -name $(or $(PUSH),kiln:latest) $(if $(PUSH),-push $(PUSH))

.PHONY: kaniko-image
kaniko-image: $(foreach p,$(PLATFORMS),dist/$(subst /,-,$p)/kaniko-executor) ## Assemble dist/kaniko-image.tar from the pinned executor; PUSH=REF pushes it too
	@go run ./deploy/image kaniko $(foreach p,$(PLATFORMS),-binary $p=dist/$(subst /,-,$p)/kaniko-executor) -o dist/kaniko-image.tar -name $(or $(PUSH),kaniko-executor:latest) $(if $(PUSH),-push $(PUSH))

# Go knows by itself whether there is something to do.
.PHONY: FORCE
dist/%/kiln: FORCE
	@CGO_ENABLED=0 GOOS=$(word 1,$(subst -, ,$*)) GOARCH=$(word 2,$(subst -, ,$*)) go build -trimpath -ldflags='-s -w' -o $(@D)/ ./cmd/kiln ./cmd/kilnd ./cmd/kiln-init

dist/%/kaniko-executor: FORCE
	@cd deploy/kaniko
	CGO_ENABLED=0 GOOS=$(word 1,$(subst -, ,$*)) GOARCH=$(word 2,$(subst -, ,$*)) go build -trimpath -ldflags='-s -w' -o $(CURDIR)/$@ github.com/osscontainertools/kaniko/cmd/executor

.PHONY: deps
deps: ## Install what is missing of runc, busybox-static and debootstrap
	@.ci/deps

.PHONY: demo
demo: deps build ## Turn a message into an image on this machine, and run the image
	@deploy/demo/demo.sh

.PHONY: clean
clean: ## Remove everything that was built, downloaded or cached here
	@rm -rf $(BIN) dist $(CACHE)

# ---------------------------------------------------------------- kubernetes

.PHONY: kube-build
kube-build: ## Build Kubernetes from its Go modules (about 20 minutes, once)
	@deploy/kubernetes/build.sh

# Helm itself, in the version that the chart's tests render with.
$(BIN)/helm: deploy/chart/tests/go.mod deploy/chart/tests/go.sum
	@echo "building Helm (some minutes, once)"
	cd deploy/chart/tests
	CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o $@ helm.sh/helm/v4/cmd/helm
	touch $@

.PHONY: kube-up
kube-up: ## Start a Kubernetes cluster on this machine, with a node where it can
	@deploy/kubernetes/up.sh

.PHONY: kube-down
kube-down: ## End that cluster and remove all that it made
	@deploy/kubernetes/down.sh

# ---------------------------------------------------------------- checking

.PHONY: test
test: $(BIN)/kaniko-executor ## Run all unit tests, and the sandbox tests if this machine can
	@.ci/gotest test -race -shuffle=on -timeout 15m $(TESTFLAGS) $(PKGS)
	cd deploy/chart/tests
	go test ./...

.PHONY: e2e
e2e: $(BIN)/kaniko-executor ## Run the process and container tests (root and runc; Docker)
	@.ci/e2e $(TESTFLAGS)

.PHONY: kube
kube: ## Run the tests that need a Kubernetes API server only, if it was built
	@.ci/kube api $(TESTFLAGS)

.PHONY: e2e-kube
e2e-kube: build $(BIN)/helm ## Run the tests on a real Kubernetes cluster, which it starts
	@.ci/kube node $(TESTFLAGS)

.PHONY: chaos
chaos: $(BIN)/kaniko-executor ## Break real processes for CHAOS_DURATION (10m), once for each of CHAOS_SEEDS, and judge
	@for seed in $(CHAOS_SEEDS); do
		KILN_CHAOS_SEED=$$seed KILN_CHAOS_DURATION=$(CHAOS_DURATION) KILN_CHAOS_REQUESTS=$(CHAOS_REQUESTS) KILN_CHAOS_KILLS=$(CHAOS_KILLS) \
			go test -tags chaos -count=1 -timeout 60m -run '^(TestChaos|TestRunsWhileTriggersAreKilled)$$' -v ./cmd/kiln
	done

.PHONY: chaos-short
chaos-short: $(BIN)/kaniko-executor ## Run a short chaos, and the tests of takeover, sharing, rolling restart and runs
	@.ci/gotest chaos -tags chaos -count=1 -timeout 20m -run '^(TestChaos|TestAHundredRequestsShareOneExecution|TestAnotherWorkerTakesOverWithinALease|TestRollingRestartLosesAndRepeatsNothing|TestRunsWhileTriggersAreKilled)$$' ./cmd/kiln

.PHONY: load
load: $(BIN)/kaniko-executor ## Measure how many requests pass through 1, 2 and 4 workers, and a backlog of 50 000
	@go test -tags load -count=1 -timeout 60m -run '^TestLoad' -v ./cmd/kiln

.PHONY: fuzz
fuzz: ## Run every fuzz target for FUZZTIME (30s)
	@.ci/fuzz $(FUZZTIME)

.PHONY: bench
bench: build ## Compare Kiln, as make build builds it, with the bare executor and bare JetStream
	@KILN_TEST_PROGRAM=$(BIN)/kiln go test -tags bench -count=1 -timeout 30m -run '^TestBench' -v ./cmd/kiln

.PHONY: lint
lint: $(BIN)/.golangci-$(GOLANGCI) ## Run the linters, and check go.mod and go.sum
	@$(BIN)/golangci-lint run --allow-parallel-runners ./...
	go mod tidy -diff
	go mod verify
	cd deploy/chart/tests
	$(BIN)/golangci-lint run --allow-parallel-runners --config $(CURDIR)/.golangci.yml ./...
	go mod tidy -diff

.PHONY: fmt
fmt: $(BIN)/.golangci-$(GOLANGCI) ## Format the Go code
	@$(BIN)/golangci-lint fmt ./...

# Through the Go module proxy, and not in go.mod: its requirements would shape ours.
$(BIN)/.golangci-$(GOLANGCI):
	@mkdir -p $(BIN)
	if ! $(BIN)/golangci-lint version 2>/dev/null | grep -q 'version $(GOLANGCI:v%=%) '; then
		echo "building golangci-lint $(GOLANGCI) (some minutes, once)"
		GOBIN=$(BIN) go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI)
	fi
	touch $@

.PHONY: buildkit
buildkit: ## Build buildkitd and buildctl $(BUILDKIT), which one end-to-end test compares with
	@mkdir -p $(CACHE)/buildkit $(BIN)
	cd $(CACHE)/buildkit
	[ -f go.mod ] || go mod init buildkit
	go get github.com/moby/buildkit/cmd/buildkitd@$(BUILDKIT) github.com/moby/buildkit/cmd/buildctl@$(BUILDKIT)
	CGO_ENABLED=0 go build -o $(BIN) github.com/moby/buildkit/cmd/buildkitd github.com/moby/buildkit/cmd/buildctl

.PHONY: vuln
vuln: ## Look for known vulnerabilities that the code can reach
	@.ci/vuln $(GOVULNCHECK)

.PHONY: ci
ci: ## Lint, test, e2e, kube and a short chaos, with the duration of each step
	@mkdir -p $(CACHE)
	: > $(DURATIONS)
	$(MAKE) deps || echo "going on: tests that need it are skipped, and say so"
	for step in lint test e2e kube chaos-short; do
		echo "--- $$step"
		began=$$SECONDS
		if $(MAKE) $$step; then result=ok; else result=FAILED; fi
		printf '%-11s %-6s %4d s\n' "$$step" "$$result" $$((SECONDS - began)) >> $(DURATIONS)
	done
	echo "--- durations"
	cat $(DURATIONS)
	! grep -q FAILED $(DURATIONS)

# ---------------------------------------------------------------- documents

.PHONY: manifests
manifests: ## Write deploy/manifests and what the chart's tests expect from the chart, and deploy/nats from the topology
	@cd deploy/chart/tests
	go test . -update
	cd $(CURDIR)
	go test ./events/natsbus -run Files -update

.PHONY: docs
docs: ## Write the configuration table of the README from the code
	@CGO_ENABLED=0 go build -o $(BIN)/kilnd ./cmd/kilnd
	.ci/docs README.md
