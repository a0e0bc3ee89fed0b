# make serve           a server on ws://127.0.0.1:1234 that keeps its documents in ./data
# make test            all tests; sets up what they need
# make lint            ruff and mypy
# make autobahn        all cases of the Autobahn WebSocket test suite; needs Python 2.7
# make bench           the benchmarks of the core; kept as JSON in .benchmarks
# make bench-peers     the server under load, beside other servers; needs a C compiler, and Node.js
#                      for some of them; ARGS='--rounds 9 --load saturated' for a part, or more
# make bench-cost      a model of what a message costs, and its plot: docs/performance.md
# make bench-neighbours  how long others wait while one address asks for as much as it may
# make bench-stores    what storing costs, beside pycrdt-store; ARGS='--trace FILE' for more
# make fuzz            the fuzz targets, SECONDS=30 each with each engine

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NODE := tests/interop/node_modules/.package-lock.json
NODE_PEERS := tests/benchmarks/node_modules/.package-lock.json

SECONDS ?= 30

.PHONY: serve test lint autobahn bench bench-peers bench-cost bench-neighbours bench-stores fuzz clean

serve: $(VENV)/.server
	@$(BIN)/ycore serve $(ARGS)

test: $(VENV)/.dev $(if $(shell command -v npm),$(NODE))
	$(BIN)/coverage run -m pytest $(ARGS)
	$(BIN)/coverage report

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

autobahn: $(VENV)/.dev
	YCORE_AUTOBAHN=all YCORE_REQUIRE_AUTOBAHN=1 $(BIN)/pytest -s tests/conformance $(ARGS)

bench: $(VENV)/.dev
	$(BIN)/pytest tests/benchmarks --benchmark-only --benchmark-autosave \
		--benchmark-columns=min,median,ops $(ARGS)

bench-peers: $(VENV)/.peers $(if $(shell command -v npm),$(NODE_PEERS))
	$(BIN)/python tests/benchmarks/peers.py $(ARGS)

bench-cost: $(VENV)/.peers $(if $(shell command -v npm),$(NODE_PEERS))
	$(BIN)/python tests/benchmarks/cost.py $(ARGS)

bench-neighbours: $(VENV)/.dev
	$(BIN)/python tests/benchmarks/neighbours.py $(ARGS)

bench-stores: $(VENV)/.peers
	$(BIN)/python tests/benchmarks/stores.py $(ARGS)

fuzz: $(VENV)/.fuzz
	$(BIN)/python fuzz/run.py --engine plain --engine coverage --seconds $(SECONDS) $(ARGS)

# The markers are made anew when what is to be installed has changed. Pip before 25.1 knows no
# dependency groups, and what comes with Python may be older.
$(VENV)/.pip:
	$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	@touch $@

$(VENV)/.server: $(VENV)/.pip pyproject.toml
	@$(BIN)/pip install --quiet --editable '.[server,uvloop]'
	@touch $@

$(VENV)/.dev: $(VENV)/.server
	@$(BIN)/pip install --quiet --group dev
	@touch $@

$(VENV)/.fuzz: $(VENV)/.dev
	@$(BIN)/pip install --quiet --group fuzz
	@touch $@

$(VENV)/.peers: $(VENV)/.dev
	@$(BIN)/pip install --quiet --group peers
	@touch $@

$(NODE): tests/interop/package.json tests/interop/package-lock.json
	cd tests/interop && npm ci --omit=optional
	@touch $@

# With the optional ones: @y/websocket-server does not start without y-leveldb.
$(NODE_PEERS): tests/benchmarks/package.json tests/benchmarks/package-lock.json
	cd tests/benchmarks && npm ci
	@touch $@

clean:
	rm -rf $(VENV) .autobahn tests/interop/node_modules tests/benchmarks/node_modules
