# Every target prepares what it needs: a fresh clone with Python >= 3.11 and make is enough.
#   make demo       train and compare every mixer on recall and on digits; writes report/index.html
#   make test       tests and doctests, without those marked slow
#   make test-all   all tests, the slow ones included
#   make lint       ruff and pyright
#   make bench      time the engines next to plain JAX; writes bench/
#   make bench-all  the same, next to PyTorch packages, which it installs
#   make experiments  the paper's figures and tables at a small scale, as far as their data are there
#                   (DSFJAX_DATA): 1½ hours for recall on four cores, several for the other tasks
#   make notebooks  run the notebooks and write what they show next to the scripts
PYTHON ?= python3
WORKERS ?= auto
VENV := .venv
PY := $(VENV)/bin/python
# A worker takes whole files (tests/conftest.py): what a file shares is then compiled once.
# With bytecode, whatever the environment says: the checks of types and assertions that are compiled
# into the modules are a third of the time until the first test.
PYTEST := PYTHONDONTWRITEBYTECODE= $(PY) -m pytest -n $(WORKERS) --maxprocesses 4 --dist loadfile

BENCH := $(VENV)/bin/dsfjax bench --repeats 3 --out bench

# Two stamps at once would mean two installs into one environment.
.NOTPARALLEL:
.PHONY: demo test test-all lint bench bench-all experiments notebooks clean

demo: $(VENV)/.cli-stamp
	$(VENV)/bin/dsfjax compare mqar digits --preset demo --quick-compile --run-dir runs/demo --report report

experiments: $(VENV)/.cli-stamp
	$(PY) -m experiments --scale small

bench: $(VENV)/.cli-stamp
	$(BENCH)

bench-all: $(VENV)/.bench-stamp
	$(BENCH)

notebooks: $(VENV)/.notebooks-stamp
	$(PY) notebooks

test: $(VENV)/.test-stamp
	$(PYTEST) -m "not slow"

test-all: $(VENV)/.test-stamp $(VENV)/.notebooks-stamp
	$(PYTEST)

lint: $(VENV)/.dev-stamp
	$(PY) -m ruff check .
	$(PY) -m pyright --pythonpath $(PY)

clean:
	rm -rf $(VENV) runs report bench .pytest_cache .ruff_cache .hypothesis

# A stamp is older than pyproject.toml exactly when its requirements may have changed.
$(PY):
	$(PYTHON) -m venv $(VENV)

$(VENV)/.%-stamp: pyproject.toml | $(PY)
	$(PY) -m pip install --quiet --editable ".[$*]"
	@touch $@
