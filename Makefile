# `make help` lists what there is. Tools are installed at pinned versions below
# .tmp/bin and never enter a go.mod.
MAKEFLAGS += --warn-undefined-variables --no-print-directory
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

GOLANGCI_LINT_VERSION := v2.15.0
GOVULNCHECK_VERSION := v1.8.0

# What `make test`, `make race` and `make benchstat` hand to go test besides.
TESTFLAGS ?=
# Which benchmarks, what else to tell ./bench, such as -bars or -samples 100, and how often
# `make benchstat` runs each.
BENCH ?= .
BENCHFLAGS ?=
SAMPLES ?= 10
FUZZTIME ?= 30s

BIN := $(CURDIR)/.tmp/bin
GOLANGCI_LINT := $(BIN)/golangci-lint-$(GOLANGCI_LINT_VERSION)
GOVULNCHECK := $(BIN)/govulncheck-$(GOVULNCHECK_VERSION)

# $(call in-modules,command) runs the command in the directory of every module.
in-modules = go list -m -f '{{.Dir}}' | while read -r dir; do (cd "$$dir" && echo "$$dir" && $(1)); done

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: test
test: ## run the tests of all modules
	@go test $(TESTFLAGS) work

.PHONY: race
race: ## run the tests of all modules with the race detector, in random order
	@go test -race -shuffle=on $(TESTFLAGS) work

.PHONY: vet
vet: ## go vet
	@go vet work

.PHONY: lint
lint: $(GOLANGCI_LINT) ## check the style and the formatting
	@$(call in-modules,$(GOLANGCI_LINT) run --config $(CURDIR)/.golangci.yml ./...)

.PHONY: format
format: $(GOLANGCI_LINT) ## format the code
	@$(GOLANGCI_LINT) fmt

.PHONY: bench
bench: ## compare Backstay with its peers, in the cases that match BENCH
	@go run ./bench -run '$(BENCH)' $(BENCHFLAGS)

.PHONY: benchstat
benchstat: ## run the packages' own benchmarks, BENCH of them, into .tmp/bench.txt for benchstat
	@mkdir -p .tmp
	@go test -run '^$$' -bench '$(BENCH)' -benchmem -count $(SAMPLES) $(TESTFLAGS) ./... | tee .tmp/bench.txt

.PHONY: fuzz
fuzz: ## run every fuzz test for FUZZTIME
	@go list -f '{{.Dir}}' work | while read -r dir; do \
		(cd "$$dir" && go test -list '^Fuzz' . | { grep '^Fuzz' || true; } | while read -r name; do \
			echo "$$dir $$name" && go test -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) . ; \
		done); \
	done

.PHONY: cover
cover: ## measure how much of each package the tests of the root module cover
	@mkdir -p .tmp
	@go test -coverprofile .tmp/coverage.txt -coverpkg ./... ./... > .tmp/cover.log || { cat .tmp/cover.log; exit 1; }
	@go tool cover -func .tmp/coverage.txt | tail -1
	@go tool cover -html .tmp/coverage.txt -o .tmp/coverage.html

.PHONY: tidy-check
tidy-check: ## check that go mod tidy would change nothing
	@$(call in-modules,GOFLAGS=-mod=mod go mod tidy -diff)

.PHONY: modules
modules: ## build and vet every module by itself, without the workspace
	@$(call in-modules,GOWORK=off go build -o /dev/null ./... && GOWORK=off go vet ./...)

.PHONY: vulncheck
vulncheck: $(GOVULNCHECK) ## look for known vulnerabilities
	@$(call in-modules,$(GOVULNCHECK) ./...)

.PHONY: clean
clean: ## remove tools and results
	@rm -rf .tmp

# The version is in the program's name, so that a new one is installed afresh.
$(GOLANGCI_LINT):
	@GOBIN=$(BIN) go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_LINT_VERSION)
	@mv $(BIN)/golangci-lint $@

$(GOVULNCHECK):
	@GOBIN=$(BIN) go install golang.org/x/vuln/cmd/govulncheck@$(GOVULNCHECK_VERSION)
	@mv $(BIN)/govulncheck $@
