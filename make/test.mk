# Tests. A lane that ran nothing has failed.

.PHONY: test
test: build-for-tests ## All lanes; with libkrun what has to do with the engine
	@python3 make/test.py --bin $(BIN) unit integration krun

.PHONY: test\:unit
test\:unit: ## Tests without a VM
	@python3 make/test.py unit

.PHONY: test\:integration
test\:integration: build-for-tests ## VM tests with the engine that works here
	@python3 make/test.py --bin $(BIN) integration

.PHONY: test\:integration\:krun
test\:integration\:krun: build-for-tests ## All VM tests with libkrun, inside an emulated machine that has KVM
	@python3 make/test.py --bin $(BIN) krun-all

.PHONY: images
images: ## Make the test images
	@tests/images/build.sh >/dev/null
