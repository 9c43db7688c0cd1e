# Everything from a fresh clone: Python 3.11 or newer, git and make are all it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: quickstart test chaos check clean

quickstart: $(VENV)/installed  ## tune a density on packaged photographs, in a few minutes
	$(BIN)/densitune launch configs/quickstart.yaml

test: $(VENV)/installed-test  ## the whole test suite
	$(BIN)/pytest -n 2

chaos: $(VENV)/installed-test  ## processes killed, PostgreSQL restarted and gone, for half an hour
	$(BIN)/pytest -m long -s tests/chaos

check: $(VENV)/installed-test  ## formatting, lints, types and borders
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

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
