# What a change has to pass before it is looked at.

.PHONY: check
check: ## Format, lints, docs, licences, invariants and unit tests; reports all failures at the end
	@python3 make/check.py $(if $(filter test,$(MAKECMDGOALS)),--without-tests)

.PHONY: fmt
fmt: ## Format the code
	cargo fmt --all
