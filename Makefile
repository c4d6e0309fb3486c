# drover: build, try, test. Needs Go (see go.mod), make and bash; "make test" brings the rest.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build

GO ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION)
# Without the tracing of gRPC nothing in the binaries calls methods by names that
# are made at run time, and the linker can leave out every method that is not used.
TAGS := grpcnotrace
RUNNERS := bash python binary
BINARIES := bin/drover $(RUNNERS:%=bin/drover-runner-%)
BUF := $(GO) tool -modfile=tools/buf/go.mod buf
LINT := $(GO) tool -modfile=tools/lint/go.mod golangci-lint
GOFUMPT := $(GO) tool -modfile=tools/gofumpt/go.mod gofumpt

.PHONY: build demo test needs fuzz sim chaos lint gen gen-check bench man clean fmt help FORCE

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

build: $(BINARIES) ## build drover and the runner plugins into ./bin

bin/%: FORCE
	@mkdir -p bin
	@$(GO) build -trimpath -tags $(TAGS) -ldflags '$(LDFLAGS)' -o $@ ./cmd/$*

demo: build ## start a cluster on this machine and run a first job
	@bash examples/demo.sh

# What drives programs of its own, or one deterministic world, gains nothing from the
# race detector, and takes ten times as long with it.
test: needs build ## unit, property, conformance, command-line, end-to-end and short fuzz tests
	$(GO) test -race -shuffle=on -timeout 10m -skip '^TestScripts$$' $$($(GO) list ./... | grep -v /test/)
	$(GO) test -shuffle=on -timeout 25m ./cmd/drover ./test/...
	@GO=$(GO) bash test/fuzz.sh 3s

needs:
	@bash test/needs.sh

FUZZTIME ?= 60s
fuzz: ## fuzz every parser for FUZZTIME (60s) each
	@GO=$(GO) bash test/fuzz.sh $(FUZZTIME)

sim: ## 100,000 simulated schedules of faults, and the planted bugs that they must find
	DROVER_LONG=1 DROVER_SIM_SEEDS=100000 $(GO) test -count=1 -timeout 60m -v ./test/sim

chaos: build ## kill the daemons of a cluster a thousand times and settle accounts
	@bin/drover chaos --kills 1000 --minutes 20 --jobs 40

lint: ## formatting, static checks, protocol checks, reproducible generated code
	@out="$$($(GOFUMPT) -l $$(git ls-files -co --exclude-standard '*.go' | grep -v '\.pb\.go$$'))"; \
	if [ -n "$$out" ]; then echo "not formatted (run make fmt):"; echo "$$out"; exit 1; fi
	$(GO) vet ./...
	$(LINT) run ./...
	$(MAKE) --no-print-directory gen-check

fmt: ## format the code
	@$(GOFUMPT) -w $$(git ls-files -co --exclude-standard '*.go' | grep -v '\.pb\.go$$')

gen: ## generate code from the protocol
	@$(BUF) generate

gen-check:
	@$(BUF) lint
	@tag="$$(git describe --tags --abbrev=0 2>/dev/null || true)"; \
	if [ -n "$$tag" ]; then $(BUF) breaking --against ".git#tag=$$tag"; else echo "no tag yet: nothing to break"; fi
	@dir="$$(mktemp -d)"; trap 'rm -rf "$$dir"' EXIT; \
	$(BUF) generate -o "$$dir"; \
	for f in $$(git ls-files 'proto/*.pb.go'); do \
		cmp -s "$$f" "$$dir/$$f" || { echo "$$f is not what the protocol generates: run make gen"; exit 1; }; \
	done

bench: build ## measure everything, beside the limits of the machine; figures in dist/bench.json
	@mkdir -p dist
	@bin/drover bench all --peer auto --save dist/bench.json

man: ## write the manual pages into ./dist/man
	@$(GO) run -tags man -ldflags '$(LDFLAGS)' ./cmd/drover man dist/man

clean: ## remove what was built
	rm -rf bin dist
