# Entry points for people and for CI. What they do stands in make/.
#
#   make quickstart      from a fresh machine to a running box
#   make deps check test everything that has to hold before a change goes in

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
# Cargo uses all cores by itself, and the VM tests must not compete with a build.
.NOTPARALLEL:
.DELETE_ON_ERROR:

# Cargo takes a relative CARGO_TARGET_DIR from where it is called, which is here.
export CARGO_TARGET_DIR := $(abspath $(or $(CARGO_TARGET_DIR),target))
export BOXLITE_CACHE ?= $(HOME)/.cache/boxlite
# Tools that `make deps` built, and those that Debian keeps off a user's path.
export PATH := $(BOXLITE_CACHE)/tools/bin:$(PATH):/usr/sbin:/sbin

# The tree stays as it is checked out.
export PYTHONDONTWRITEBYTECODE := 1

include make/build.mk
include make/check.mk
include make/test.mk

.PHONY: help
help: ## Say what can be made
	@grep -hE '^[a-z\\:-]+:.*## ' $(MAKEFILE_LIST) | sed -e 's/\\//g' -e 's/:[^:#]*## /\t/' | \
		awk -F'\t' '{printf "  make %-24s %s\n", $$1, $$2}'
