# make demo    see it work: installs, then runs the main job on SQLite, with no key and no network
# make test    install what the tests need, and run them all
# make test-postgres   run the tests that name no engine over PostgreSQL instead of SQLite; ONLY="tests/…": some of them
# make check   format, lint, types, and whether the site can be built
# make site    build the documentation as web pages into .site
# make fix     format, and mend what the linter can
# make package build the wheel, and use it in a fresh environment of each Python that this machine has
# make bench   print the figures, each against a named peer in the same run
# make faults  the fault tests with many rounds
# make floors  the core of the tests, and those of the servers, with the lowest releases that pyproject.toml allows
# make upstream  the tests of the installed LangGraph, with our checkpointer and store in the place of its own

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# Bytecode is always cached, or each process of the tests would compile all modules again.
export PYTHONDONTWRITEBYTECODE =

FLOORS := .venv-floors
UV     := VIRTUAL_ENV=$(FLOORS) $(FLOORS)/bin/uv pip install --quiet
# The tests that run with the lowest releases: those of code that calls other packages. They cover the statements over
# SQLite (sqlite-utils), each part in graphs and agents (langgraph, langchain), state and settings (pydantic), words
# (regex, snowballstemmer), prices (genai-prices), the terminal (click, rich), and two modules over PostgreSQL (psycopg).
# Pure functions and other behaviours of our own are the same with every release, and `make test` covers them. Tests that
# compare with LangGraph's own saver are not among them, because that saver has changed since.
CORE   := \
	contract/test_checkpoints contract/test_memory_items contract/test_record contract/test_sessions \
	test_async_twins test_settings \
	checkpoint/test_repair_in_graphs checkpoint/test_serde checkpoint/test_state_classes \
	cli/test_terminal \
	display/test_html \
	integrations/test_langchain_agents \
	memory/test_memory_in_graphs \
	recording/test_attach recording/test_follow recording/test_partial_records recording/test_prices recording/test_recorder recording/test_usage \
	runtime/test_cancelled_runs \
	storage/test_jsonable storage/test_tokenizer storage/test_vectors
# The servers, the client and the adapters, with the lowest releases of their extras. These need later releases of some
# packages than the core does, so they have an environment of their own.
SERVED := \
	integrations/server/test_application integrations/server/test_assistants integrations/server/test_metrics \
	integrations/server/test_store integrations/server/test_threads \
	integrations/test_mcp_middleware integrations/test_opentelemetry_spans integrations/test_session_client
# Left out of them: PostgreSQL and tests of several processes, which differ in no release; names that only later
# conventions of OpenTelemetry have; and the state of an unknown subgraph, which LangGraph 1.2.4 refuses to read.
NOT_SERVED := postgres or several_processes or each_process or unknown_subgraph or conventions or handler_given_twice \
	or content_is_recorded

export NO_MKDOCS_2_WARNING = 1 # an advertisement of its theme

.PHONY: demo test test-postgres check site fix package bench faults floors upstream docs clean

demo: $(VENV)/demo.stamp
	@$(BIN)/python examples/tour.py

test: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -n auto --dist worksteal

test-postgres: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -n auto --dist worksteal --postgres $(ONLY)

check: $(VENV)/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy --explicit-package-bases examples docs/generators
	$(BIN)/python -m mkdocs build --strict --quiet

site: $(VENV)/dev.stamp
	$(BIN)/python -m mkdocs build --strict --quiet
	@echo "Read it with: $(BIN)/python -m http.server --directory .site"

fix: $(VENV)/dev.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

package: $(VENV)/dev.stamp
	$(BIN)/python .ci/package

bench: $(VENV)/dev.stamp
	$(BIN)/python -m benchmarks.run

faults: $(VENV)/dev.stamp
	SESSION_FAULT_ROUNDS=200 $(BIN)/python -m pytest --timeout 0 tests/faults tests/runtime/test_shared_runs.py

floors: $(FLOORS)/floors.stamp
	$(FLOORS)/bin/python -m pytest -n auto --dist worksteal $(CORE:%=tests/%.py) -k "not postgres or test_checkpoints or test_follow"
	$(FLOORS)-servers/bin/python -m pytest -n auto --dist worksteal $(SERVED:%=tests/%.py) -k "not ($(NOT_SERVED))"
	$(FLOORS)-openai-agents/bin/python -m pytest tests/integrations/test_openai_items.py tests/integrations/test_fastapi_errors.py

upstream: $(VENV)/dev.stamp
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --group upstream
	$(BIN)/python .ci/upstream.py

docs: $(VENV)/dev.stamp
	$(BIN)/python notebooks/execute.py

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade "pip>=25.1"

$(VENV)/demo.stamp: pyproject.toml | $(VENV)/bin/python
	@echo "Installing into $(VENV) (once) …"
	@$(PIP) --editable . --group demo
	@touch $@

$(VENV)/dev.stamp: pyproject.toml | $(VENV)/bin/python
	$(PIP) uv
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --editable '.[chat]' --group dev
	@touch $@

$(FLOORS)/floors.stamp: pyproject.toml
	rm -rf $(FLOORS) $(FLOORS)-openai-agents $(FLOORS)-servers
	$(PYTHON) -m venv $(FLOORS)
	$(PYTHON) -m venv $(FLOORS)-openai-agents
	$(PYTHON) -m venv $(FLOORS)-servers
	$(FLOORS)/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(UV) --resolution lowest-direct --editable '.[chat,postgres,vectors]' --group demo
	$(UV) --group core-tests
	$(UV) --python $(FLOORS)-servers --resolution lowest-direct 'opentelemetry-sdk>=1.30' \
		--editable '.[chat,client,fastmcp,mcp,opentelemetry,postgres,server]'
	$(UV) --python $(FLOORS)-servers --group core-tests 'httpx-sse>=0.4' 'langgraph-sdk>=0.4'
	$(UV) --python $(FLOORS)-openai-agents --resolution lowest-direct --editable '.[fastapi,openai-agents,postgres]' 'openai>=2.9'
	$(UV) --python $(FLOORS)-openai-agents --group core-tests
	touch $@

clean:
	rm -rf $(VENV) $(FLOORS) $(FLOORS)-openai-agents $(FLOORS)-servers .pytest_cache .mypy_cache .ruff_cache .hypothesis .site build dist
