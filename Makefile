# Spillway. `make help` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.ONESHELL:

CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/spillway
export PATH := $(HOME)/.cargo/bin:$(CACHE)/tools/bin:/usr/local/go/bin:$(PATH)
CARGO_DENY_VERSION := 0.20.2
SCENARIO ?=
MEMBERS ?=
# What the machines of clusters are made of: namespaces of this machine, or kind's containers.
PROVIDER ?= namespaces
KERNEL ?=
SUITE ?=
# Always the whole workspace: cargo compiles dependencies anew, with other features, for each other choice of packages.
# Namespaces, mounts and real kernels need root.
AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo -E env "PATH=$$PATH")

.PHONY: help
help: ## Say what each target does
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: demo
demo: build ## Bring up a hub and two member clusters, join them, apply one policy, show who left with which address; PROVIDER=kind makes them with kind
	$(AS_ROOT) env SPILLWAY_PROVIDER=$(PROVIDER) target/debug/demo

.PHONY: test
test: toolbox check unit docs e2e ## Everything: format, clippy, deny, unit and property tests, docs, e2e on real clusters

.PHONY: check
check: tools toolbox ## Format, clippy, dependency rules, generated files
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo clippy --workspace --test scenarios -- -D warnings
	cargo deny --log-level error check bans licenses sources
	deploy/generate.sh --check

.PHONY: unit
unit: toolbox ## Unit and property tests; those of the data path run against this machine's kernel, in own namespaces
	$(AS_ROOT) cargo test --workspace --no-fail-fast

.PHONY: docs
docs: ## Build the API documentation; a broken link is an error
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --quiet

.PHONY: e2e
e2e: build ## Scenarios on real clusters; SCENARIO=name or SCENARIO=group picks some
	$(AS_ROOT) cargo test --workspace --test scenarios -- $(SCENARIO)

.PHONY: e2e-kind
e2e-kind: build ## The same scenarios on clusters that kind makes, three at once; those it can't do are listed with the reason
	$(AS_ROOT) env SPILLWAY_PROVIDER=kind cargo test --workspace --test scenarios -- $(SCENARIO)

.PHONY: test-kernels
test-kernels: toolbox ## The data path on Debian's kernels, in virtual machines; KERNEL=5.10 and SUITE=matrix pick some
	$(AS_ROOT) e2e/kernels/test.sh $(KERNEL) $(SUITE)

.PHONY: bench
bench: toolbox ## Measure what users run: convergence, throughput, gaps across faults; prints a table, writes target/bench.json
	cargo build --release --workspace --bins
	$(AS_ROOT) target/release/spillway-bench

.PHONY: bench-scale
bench-scale: toolbox ## Measure a hub with 10, 100 and 1,000 members; MEMBERS=100 picks a size; prints a table, writes target/bench-scale.json
	cargo build --release --workspace --bins
	$(AS_ROOT) target/release/spillway-bench-scale $(addprefix --members ,$(MEMBERS))

.PHONY: build
build: ## Build all programs
	cargo build --workspace --all-targets

.PHONY: generate
generate: toolbox ## Write CRDs, manifests and reference docs anew from the code
	deploy/generate.sh

.PHONY: toolbox
toolbox: ## Install Debian packages and build Kubernetes, etcd, containerd and Helm where they are missing
	cargo build --quiet --workspace --bin arena
	$(AS_ROOT) target/debug/arena toolbox

.PHONY: tools
tools:
	@if ! cargo deny --version 2>/dev/null | grep -q ' $(CARGO_DENY_VERSION)$$'; then
	  echo "Building cargo-deny $(CARGO_DENY_VERSION) into $(CACHE)/tools (once, some minutes)"
	  cargo install --quiet --locked --root $(CACHE)/tools cargo-deny --version $(CARGO_DENY_VERSION)
	fi

.PHONY: clean
clean: ## Take down every arena and remove build output; caches outside the checkout stay
	[ ! -x target/debug/arena ] || $(AS_ROOT) target/debug/arena down --all
	cargo clean
