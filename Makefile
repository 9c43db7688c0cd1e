# Everything from a fresh clone: Python 3.11 or newer, git and make are all it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: quickstart test numerical faults chaos fuzz image slurm check reference notebook clean

quickstart: $(VENV)/installed  ## tune a density on packaged photographs, in a few minutes
	$(BIN)/densitune launch configs/quickstart.yaml

test: $(VENV)/installed-test  ## all tests but the long ones
	$(BIN)/pytest -n 2

# A CPU without AVX-512 takes other kernels, and sees its memory checked: mallopt(3), M_CHECK_ACTION.
numerical: export ONEDNN_MAX_CPU_ISA := AVX2
numerical: export ATEN_CPU_CAPABILITY := avx2
numerical: export MALLOC_CHECK_ := 3
numerical: $(VENV)/installed-test  ## the numerical tests again, as on a CPU without AVX-512
	LD_PRELOAD=libc_malloc_debug.so.0 $(BIN)/pytest -n 2 -m numerical

faults: $(VENV)/installed-test  ## every fault that was reported from the field, and whether it is mended
	$(BIN)/python tests/field_faults.py

chaos: $(VENV)/installed-test  ## processes killed, PostgreSQL restarted and gone, for half an hour
	$(BIN)/pytest -m long -s tests/chaos tests/optimizer_tests/phases/test_failover.py \
		--ignore tests/chaos/test_fuzz.py

fuzz: $(VENV)/installed-test  ## documents damaged at random, for FUZZ_SECONDS in all (600)
	$(BIN)/pytest -m long -s tests/chaos/test_fuzz.py

image: $(VENV)/installed-test  ## docker/ built and started in a Docker engine, a study to its preset
	$(BIN)/pytest -m long -s tests/elsewhere/test_image.py

# SLURM and PostgreSQL run as an ordinary user. Root counts as one in a namespace of its own.
slurm: AS_USER := $(if $(filter 0,$(shell id -u)),unshare --user --map-user=daemon --map-group=daemon)
slurm: $(VENV)/installed-test  ## docker/slurm on a cluster of one node, a study to its preset
	$(AS_USER) $(BIN)/pytest -m long -s tests/elsewhere/test_cluster.py

check: $(VENV)/installed-test  ## formatting, lints, types and borders
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

reference: $(VENV)/installed-test  ## docs/config.md and its JSON Schema, from the models
	$(BIN)/python -m optimizer.cli schema > docs/config.schema.json
	$(BIN)/python -c 'from optimizer.config import reference; print(reference.page(), end="")' \
		> docs/config.md

notebook: $(VENV)/installed-test  ## the notebook in docs/ run again, and what came out stored in it
	$(BIN)/python tests/support/notebook.py docs/study.ipynb

clean:
	rm -rf $(VENV)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# The stamps are newer than what they were installed from, so a change installs again.
$(VENV)/installed: $(BIN)/python pyproject.toml constraints.txt
	@echo "Installing; torch alone is a download of some gigabytes, once."
	$(PIP) -e .
	touch $@

$(VENV)/installed-test: $(BIN)/python pyproject.toml constraints.txt
	@echo "Installing with the test extras; torch alone is a download of some gigabytes, once."
	$(PIP) -e '.[test]'
	touch $@ $(VENV)/installed
