# make run [DATA=data/NAME] [RUN=NAME]   set up, run the notebook end to end (demo data where none is given)
# make view IMAGE=FILE [MASK=FILE] [UNCERTAINTY=FILE]   set up with napari, and look at a volume
# make test | test-slow | coverage   set up, then run the quick tests, the slow ones, or all with their coverage
# make lint | format                 set up, then check style and types, or put the code into its form
# make bench                         set up, then time the code beside its peers (seven minutes)
# make stress                        set up, then kill and damage a great deal (twelve minutes)
# make lab | notebook                set up, then open JupyterLab, or run the committed notebook again
# make figures                       draw the figures of the committed results again, from their tables
# make lock | audit                  compile the pinned requirements, or look them up in the list of
#                                    known vulnerabilities (both need a network)
SHELL := bash
PYTHON ?= python3
DATA ?= data/demo
RUN ?= $(notdir $(patsubst %/,%,$(DATA)))
UV := $(or $(shell command -v uv 2>/dev/null),.uv/bin/uv)
BIN := .venv/bin
CHECK_PYTHON = $(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, \
found " + sys.version.split()[0] + "; name one: make PYTHON=python3.12 …")'
NOTEBOOK := main_freezelayers.ipynb
export NO_ALBUMENTATIONS_UPDATE := 1

.PHONY: run test test-slow coverage stress bench figures view lint format audit lab notebook lock clean
.DELETE_ON_ERROR:

run: .venv/run
	mkdir -p "runs/$(RUN)"
	$(BIN)/papermill $(NOTEBOOK) "runs/$(RUN)/notebook.ipynb" -r DATA "$(DATA)" -r RUN "$(RUN)" --log-output --no-progress-bar
	@echo "notebook: runs/$(RUN)/notebook.ipynb   reports: runs/$(RUN)/report.html runs/$(RUN)_auto/report.html   weights: checkpoints/$(RUN)"

# One thread each: two processes with one thread are faster here than one with two.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

test: .venv/test
	$(PYTEST) -m "not slow and not stress"

test-slow: .venv/test
	$(PYTEST) -m "slow and not stress"

coverage: .venv/test
	$(PYTEST) --cov --cov-report=term-missing:skip-covered

stress: .venv/test
	$(BIN)/python -m pytest -m "stress or fuzz" --hypothesis-profile=stress -p no:cacheprovider

bench: .venv/bench
	$(BIN)/python benchmarks/speed.py

figures: .venv/run
	$(BIN)/python benchmarks/figures.py

view: .venv/view
	$(BIN)/python view.py "$(IMAGE)" $(if $(MASK),--mask "$(MASK)") $(if $(UNCERTAINTY),--uncertainty "$(UNCERTAINTY)")

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

audit: .venv/audit
	$(BIN)/pip-audit --strict --no-deps --disable-pip $(RUN_PINS:%=-r %)

lab: .venv/run
	$(BIN)/jupyter lab $(NOTEBOOK)

# Its copy shows the last line of each progress bar: first the cells are run, then lines that were
# overwritten are taken out.
NBCONVERT := $(BIN)/jupyter nbconvert --to notebook --inplace
notebook: .venv/run
	TQDM_DISABLE=1 $(NBCONVERT) --execute --ExecutePreprocessor.timeout=-1 $(NOTEBOOK)
	$(NBCONVERT) --coalesce-streams $(NOTEBOOK)

# Names of the packages that some pin files hold, as options that leave them out of another file.
but_not = $$(sed -nE 's/^([a-z0-9._-]+)==.*/--no-emit-package \1/p' $(1) | sort -u)
COMPILE = $(UV) pip compile -q --universal --generate-hashes --custom-compile-command "make lock"
RUN_PINS := requirements.txt
TEST_PINS := $(RUN_PINS) requirements/dev.txt
BENCH_PINS := $(TEST_PINS) requirements/bench.txt
VIEW_PINS := $(RUN_PINS) requirements/view.txt
AUDIT_PINS := $(RUN_PINS) requirements/audit.txt

# Each file of requirements/ holds only what it adds to those before it.
lock: $(UV)
	$(COMPILE) pyproject.toml -o requirements.txt
	$(COMPILE) pyproject.toml --group dev -c requirements.txt \
		$(call but_not,$(RUN_PINS)) -o requirements/dev.txt
	$(COMPILE) pyproject.toml --group bench $(TEST_PINS:%=-c %) \
		$(call but_not,$(TEST_PINS)) -o requirements/bench.txt
	$(COMPILE) pyproject.toml --group view -c requirements.txt \
		$(call but_not,$(RUN_PINS)) -o requirements/view.txt
	$(COMPILE) pyproject.toml --group audit $(BENCH_PINS:%=-c %) \
		$(call but_not,$(RUN_PINS)) -o requirements/audit.txt

INSTALL = VIRTUAL_ENV=.venv $(UV) pip install -q --require-hashes $(^:%=-r %)

.venv/run: $(RUN_PINS) | .venv/bin/python $(UV)
	$(INSTALL)
	touch $@

.venv/test: $(TEST_PINS) | .venv/bin/python $(UV)
	$(INSTALL)
	touch $@

.venv/bench: $(BENCH_PINS) | .venv/bin/python $(UV)
	$(INSTALL)
	touch $@

.venv/view: $(VIEW_PINS) | .venv/bin/python $(UV)
	$(INSTALL)
	touch $@

.venv/audit: $(AUDIT_PINS) | .venv/bin/python $(UV)
	$(INSTALL)
	touch $@

.venv/bin/python: | $(UV)
	@$(CHECK_PYTHON)
	$(UV) venv -q --allow-existing --python $(PYTHON) .venv

.uv/bin/uv:
	@$(CHECK_PYTHON)
	$(PYTHON) -m venv .uv
	.uv/bin/pip install -q --disable-pip-version-check uv

clean:
	rm -rf .venv .uv .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
