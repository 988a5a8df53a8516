# make demo, make test: everything from a bare checkout. make check: what a change must pass before it is committed.
PYTHON ?= python3.11
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready
# a file's tests stay together, for what they share (a Ray, models), and files go in their order: the longest ones are early
PARALLEL = -n $(or $(WORKERS),2) --dist loadfile --no-loadscope-reorder

.PHONY: setup debian demo test check format docs clean

setup: $(READY)

# torch first: its CPU build, before anything else can ask for another
$(READY): pyproject.toml constraints.txt
	@echo "installing into $(VENV): about 1 to 2 GB, and some minutes; once"
	@command -v $(PYTHON) >/dev/null && $(PYTHON) -m venv $(VENV) || python3 -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch==2.13.0 -c constraints.txt
	$(BIN)/python -m pip install --quiet -e '.[dev]' -c constraints.txt
	touch $@

# of Debian, for tests of pages and of servers, which are skipped where these are not
debian:
	@command -v chromium >/dev/null && ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || \
	(apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium postgresql)

demo: setup
	$(BIN)/mergeopt demo
	@echo "mergeopt is $(BIN)/mergeopt, or plain mergeopt after: . $(BIN)/activate"

test: setup
	$(BIN)/python -m pytest $(PARALLEL)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest $(PARALLEL) -m 'not slow'

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# tables of keys and options in docs/, and the JSON Schema of jobs, from the classes that check them
docs: setup
	$(BIN)/python -m optimizer.jobs.docs

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
