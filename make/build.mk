# Building and running.

# Optimized, without link-time optimization: what every developer and CI builds. `make dist` takes `release`.
PROFILE ?= fast

# The agent runs in a VM that holds nothing but itself, so it is linked statically. Naming the target keeps these flags
# from the build scripts and gives the static build a folder of its own.
GUEST_TARGET := x86_64-unknown-linux-gnu
GUEST_FLAGS := -C target-feature=+crt-static
BUILD_GUEST = RUSTFLAGS='$(GUEST_FLAGS)' cargo build --locked --profile $(PROFILE) --target $(GUEST_TARGET)

BIN := $(CARGO_TARGET_DIR)/$(PROFILE)
GUEST_BIN := $(CARGO_TARGET_DIR)/$(GUEST_TARGET)/$(PROFILE)

.PHONY: deps
deps: ## Install what building and testing needs and this machine lacks
	@make/deps.sh

.PHONY: build
build: ## Build boxlite, boxlite-shim and boxlite-guest into target/fast
	cargo build --locked --profile $(PROFILE) -p boxlite-cli -p boxlite-shim
	$(BUILD_GUEST) -p boxlite-guest
	@make/assemble.sh $(GUEST_BIN) $(BIN) boxlite-guest

# Each in a call of its own: features are those of all packages of a call together.
.PHONY: build-for-tests
build-for-tests: build ## Build what tests and benchmarks put in the agent's place, too
	$(BUILD_GUEST) -p boxlite-raw-guest
	$(BUILD_GUEST) -p boxlite-hostile-guest
	@make/assemble.sh $(GUEST_BIN) $(BIN) boxlite-raw-guest boxlite-hostile-guest

.PHONY: quickstart
quickstart: deps build ## From a fresh machine to a running box
	@make/quickstart.sh $(BIN)

.PHONY: bench
bench: build-for-tests ## Measure, against a raw floor of the same run
	@make/bench.sh $(BIN) bench $(PARTS)

.PHONY: bench-io
bench-io: build-for-tests ## Measure the daily work with a box: commands, streams, copies, volumes
	@make/bench.sh $(BIN) bench-io $(PARTS)

.PHONY: bench-images
bench-images: build ## Measure pulling images, against other tools in the same run
	@python3 make/bench_images.py --bin $(BIN)

.PHONY: dist
dist: ## Gather a relocatable release in dist/
	@$(MAKE) --no-print-directory build PROFILE=release
	@make/dist.sh $(CARGO_TARGET_DIR)/release dist
