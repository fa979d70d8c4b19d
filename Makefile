# Two commands: `make reproduce` runs the claims and writes a report, `make test` checks the project. `make docs` builds
# the site.
# Python 3.11 or newer and make are all that is needed; everything else goes into .venv.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
OUT ?= lowdyn-report
# Processes that share the runs: most networks are so small that two of them do more than one with two threads.
JOBS ?= 2

.PHONY: reproduce test docs clean

reproduce: $(INSTALLED)
	$(BIN)/lowdyn reproduce --scale quick --out $(OUT) --jobs $(JOBS)

# One thread for each of two workers: matrices in tests are small, and threads that wait would only be in the way.
test: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/pytest -q -n 2 --dist loadfile

docs: $(INSTALLED)
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs
	@echo "site: build/docs/index.html"

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[reproduce,train,peft,cluster,dev,docs]'
	touch $@

clean:
	rm -rf $(VENV)
