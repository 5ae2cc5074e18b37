# Included by the top Makefile: what `make check` runs.
.PHONY: check check-unit check-cli check-pipeline
check: check-unit check-cli check-pipeline
check-unit: $(UNIT_BIN)
	@for t in $(UNIT_BIN); do $$t; done
check-cli: all tests
	@B=$(abspath $(B)) bats tests/cli
check-pipeline: all tests
	@B=$(abspath $(B)) bats tests/pipeline
