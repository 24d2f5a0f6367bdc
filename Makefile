# The same targets for people and for CI (.ci/run). Tests need root (hosts are namespaces), Debian 12 and its package registries; nothing else.
.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
TEST ?=
THREADS ?= 3
enter := e2e/world/enter
# A tool chain that setup had to bring comes first
cache := $(or $(NHC_CACHE),$(HOME)/.cache/nixos-host-controller)
export PATH := $(cache)/rust/bin:$(PATH)
scripts = .ci/run $(shell find e2e/world -type f -perm -u+x) e2e/world/lib.sh
