# make run [DATA=data/NAME] [RUN=NAME]   set up, run the notebook end to end (demo data where none is given)
# make view IMAGE=FILE [MASK=FILE] [UNCERTAINTY=FILE]   set up with napari, and look at a volume
# make test | bench | lint | lab | notebook      set up, then run the tests, the benchmark beside the peers (seven minutes), the
#                                                linter, JupyterLab, or refresh the committed notebook
# make figures                                   draw the figures of the committed results again, from their tables
# make stress | audit                            set up, then kill and damage a great deal (twelve minutes), or look the pinned
#                                                packages up in the list of known vulnerabilities (needs a network)
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

.PHONY: run test stress bench figures view lint audit lab notebook lock clean
.DELETE_ON_ERROR:

run: .venv/run
	mkdir -p "runs/$(RUN)"
	$(BIN)/papermill $(NOTEBOOK) "runs/$(RUN)/notebook.ipynb" -r DATA "$(DATA)" -r RUN "$(RUN)" --log-output --no-progress-bar
	@echo "notebook: runs/$(RUN)/notebook.ipynb   reports: runs/$(RUN)/report.html runs/$(RUN)_best/report.html   weights: checkpoints/$(RUN)"

test: .venv/test
	$(BIN)/python -m pytest --cov --cov-report=term-missing:skip-covered

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

audit: .venv/audit
	$(BIN)/pip-audit --strict --no-deps --disable-pip -r requirements.txt

lab: .venv/run
	$(BIN)/jupyter lab $(NOTEBOOK)

notebook: .venv/run
	$(BIN)/jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.timeout=-1 $(NOTEBOOK)

lock: $(UV)
	$(UV) pip compile -q --universal --generate-hashes pyproject.toml -o requirements.txt
	$(UV) pip compile -q --universal --generate-hashes pyproject.toml --group dev -c requirements.txt -o requirements-dev.txt
	$(UV) pip compile -q --universal --generate-hashes pyproject.toml --group bench -c requirements-dev.txt -o requirements-bench.txt
	$(UV) pip compile -q --universal --generate-hashes pyproject.toml --group view -c requirements.txt -o requirements-view.txt
	$(UV) pip compile -q --universal --generate-hashes --group audit -c requirements-bench.txt -o requirements-audit.txt

.venv/run: requirements.txt | .venv/bin/python $(UV)
	VIRTUAL_ENV=.venv $(UV) pip install -q --require-hashes -r requirements.txt
	touch $@

.venv/test: requirements-dev.txt | .venv/bin/python $(UV)
	VIRTUAL_ENV=.venv $(UV) pip install -q --require-hashes -r requirements-dev.txt
	touch $@

.venv/bench: requirements-bench.txt | .venv/bin/python $(UV)
	VIRTUAL_ENV=.venv $(UV) pip install -q --require-hashes -r requirements-bench.txt
	touch $@

.venv/view: requirements-view.txt | .venv/bin/python $(UV)
	VIRTUAL_ENV=.venv $(UV) pip install -q --require-hashes -r requirements-view.txt
	touch $@

.venv/audit: requirements-audit.txt | .venv/bin/python $(UV)
	VIRTUAL_ENV=.venv $(UV) pip install -q --require-hashes -r requirements-audit.txt
	touch $@

.venv/bin/python: | $(UV)
	@$(CHECK_PYTHON)
	$(UV) venv -q --allow-existing --python $(PYTHON) .venv

.uv/bin/uv:
	@$(CHECK_PYTHON)
	$(PYTHON) -m venv .uv
	.uv/bin/pip install -q --disable-pip-version-check uv

clean:
	rm -rf .venv .uv .pytest_cache .ruff_cache .hypothesis .coverage
