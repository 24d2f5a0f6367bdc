# The same targets for people and for CI (.ci/run). Tests need root (hosts are namespaces), Debian 12 and its package registries; nothing else.
.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -euo pipefail -c

# Only the end-to-end tests whose name contains this
TEST ?=
# End-to-end tests at a time
THREADS ?= 3

cache := $(or $(NHC_CACHE),$(HOME)/.cache/nixos-host-controller)
# A tool chain that setup had to bring comes first
export PATH := $(cache)/rust/bin:$(PATH)
enter := e2e/world/enter
cargo := cargo --locked
simulation = $(cargo) test --profile sim -p nixos-host-controller --lib -- --nocapture --exact
# There is no network in a world: cargo has built before, and only runs
cargo_inside := $(enter) cargo --offline --locked

scripts := .ci/run fuzz/run fuzz/rustc e2e/world/lib.sh $(addprefix e2e/world/,setup enter join serve boot-host make-disk suite) $(wildcard e2e/world/parts/*)
# What runs on hosts: plain sh. Those of the fixture are templates, whose @placeholders@ stand for words
host_scripts := $(shell find src charts -name '*.sh')
templates := $(wildcard e2e/world/flake/*.sh)

.PHONY: help setup tools unit nix e2e cluster emulator torture torture-hosts torture-simulated fuzz test test-full demo demo-stop bench lint clean

help: ## Show this
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

setup: ## Make the test world: Nix, hosts, etcd, kube-apiserver (minutes the first time, seconds after)
	e2e/world/setup

tools: ## Add what the tests hold it against: helm, Argo CD, Flux's linter, Prometheus (minutes the first time)
	e2e/world/setup tools

unit: ## Test what needs neither Nix nor a cluster
	$(cargo) test -p nixos-host-controller -p nixos-host-api
	SIM_SEEDS=20000 $(simulation) sim::tests::no_seed_breaks_an_invariant

nix: setup ## Test what needs a real Nix
	$(cargo) test -p nixos-host-controller --lib --no-run
	$(cargo_inside) test -p nixos-host-controller --lib -- --ignored --skip sim:: --test-threads=$(THREADS)
	$(cargo) test -p nixos-host-e2e --test flake --no-run
	$(cargo_inside) test -p nixos-host-e2e --test flake -- --ignored --test-threads=$(THREADS)

e2e: tools ## Test on a real control plane and real hosts: TEST=part-of-a-name, THREADS=3
	$(cargo) build -p nixos-host-controller
	$(cargo) test -p nixos-host-e2e --no-run
	$(enter) e2e/world/suite --test-threads=$(THREADS) $(TEST)

cluster: ## Test the chart on a real node: kubelet, containerd, pods
	e2e/world/setup tools node
	$(cargo) build -p nixos-host-controller
	$(cargo) test -p nixos-host-e2e --test cluster --no-run
	$(cargo_inside) test -p nixos-host-e2e --test cluster -- --ignored

emulator: ## Test landings by reboot with real kernels, systemd-boot and GRUB, in an emulator (12 minutes)
	e2e/world/setup tools emulator
	$(cargo) build -p nixos-host-controller
	$(cargo) test -p nixos-host-e2e --test emulator --no-run
	$(cargo_inside) test -p nixos-host-e2e --test emulator -- --ignored --test-threads=1

torture: $(if $(N),torture-hosts) $(if $(SEEDS),torture-simulated) $(if $(N)$(SEEDS),,torture-hosts torture-simulated fuzz) ## Break things at random: all of it, or SEEDS=200000 simulated, or HOSTS=8 N=200 on real hosts

torture-simulated:
	SIM_SEEDS=$(or $(SEEDS),200000) $(simulation) --include-ignored \
	  sim::tests::each_broken_variant_is_caught sim::tests::no_seed_breaks_an_invariant sim::tests::every_pair_of_cuts_of_one_change

torture-hosts: tools
	$(cargo) build -p nixos-host-controller
	$(cargo) test -p nixos-host-e2e --test torture --no-run
	HOSTS=$(or $(HOSTS),8) N=$(or $(N),200) $(cargo_inside) test -p nixos-host-e2e --test torture -- --ignored --nocapture

test: setup unit nix e2e cluster ## All tests but the emulator's, from nothing

test-full: test emulator ## Those too

demo: setup ## Show it: three hosts land, follow a commit, and come back from a bad one. KEEP=1 leaves it running
	$(cargo) build -p nixos-host-controller -p nixos-host-e2e
	$(enter) $${CARGO_TARGET_DIR:-target}/debug/demo

demo-stop: ## End what `make demo KEEP=1` left running
	@for kept in $(cache)/runs/*/demo/kept; do \
	  run=$${kept%/demo/kept}; [ -e "$$kept" ] || continue; flock -n "$$run/lock" true && continue; \
	  kill -TERM "$$(cat "$$run/pid")"; until [ ! -e "$$kept" ]; do sleep 0.2; done; echo "ended $${run##*/}"; \
	done

bench: tools ## Measure it side by side with a plain shell script
	$(cargo) build --release -p nixos-host-controller -p nixos-host-bench
	$(enter) $${CARGO_TARGET_DIR:-target}/release/bench

fuzz: ## Fuzz each parser of what a host or Nix prints: SECONDS=60 for each, TARGET=one
	e2e/world/setup fuzz
	fuzz/run $(or $(SECONDS),60) $(TARGET)

lint: ## Format, clippy, dependencies, shell scripts
	cargo fmt --all --check
	$(cargo) clippy --workspace --all-targets -- -D warnings
	e2e/world/setup cargo-deny
	$(cache)/cargo-deny/bin/cargo-deny --locked --all-features check bans licenses sources
	@if $(cache)/cargo-deny/bin/cargo-deny fetch db >/dev/null 2>&1; then $(cache)/cargo-deny/bin/cargo-deny --locked check advisories; \
	else echo "lint: advisories not checked, their database cannot be reached from here"; fi
	shellcheck $(scripts)
	shellcheck --shell=sh --severity=warning $(host_scripts)
	shellcheck --shell=dash --severity=error --exclude=SC2239 $(templates)

clean: ## Remove what was built, and the test world with its cache
	cargo clean
	rm -rf $(cache)
