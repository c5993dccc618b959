# make book    build the book and print where it is      make test       everything CI runs
# make lab     JupyterLab on the book                    make check      the fast part of the tests
# make notebooks  re-execute and normalise all notebooks in place
# make cheatsheet  print the cheat sheet of a built book as a PDF (needs Chromium)
# make zip     pack the built book into one archive that opens by double-click
# make runs    repeat the runs behind the tables in book/_data
# make bench   time the package beside TRL, and beside the limits of the machine
# make .venv/peers  install TRL and Ray, so that make test compares with them too; CI does
#
# Each creates .venv with the pinned packages when it is missing. On Linux, PyPI's torch brings CUDA with
# it; TORCH_INDEX=<url of a package index> adds an index to take a smaller build from.

PYTHON ?= python3
TORCH_INDEX ?=
BIN := .venv/bin
HTML := book/_build/html
STRICT := build/strict
# Notebooks print the same digits on any machine only if sums run in one order.
export OMP_NUM_THREADS := 1
export PYTHONHASHSEED := 0
export PYDEVD_DISABLE_FILE_VALIDATION := 1
# Each notebook and many a test starts a Python of its own: let the first compile the package for all.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: book cheatsheet zip test check lab notebooks runs bench strict clean

book: .venv/installed
	$(BIN)/jupyter-book build book --all
	@if command -v chromium >/dev/null; then $(BIN)/python book/cheatsheet.py $(HTML); else echo "No chromium: no PDF of the cheat sheet"; fi
	@echo "Open $(CURDIR)/$(HTML)/index.html"

test: .venv/installed strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest --numprocesses 2 --dist loadfile --nbval --nbval-current-env -p no:cacheprovider book/*.ipynb
	KLTUTOR_BOOK=$(CURDIR)/$(STRICT)/_build/html $(BIN)/pytest --numprocesses 2 --dist worksteal -m "not again"

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -m "not book and not slow"

# Warnings are errors, and the stored outputs are used: nbval has executed them already.
strict: .venv/installed
	rm -rf $(STRICT)
	KLTUTOR_EXECUTE=off $(BIN)/jupyter-book build book --all -n -W --keep-going --path-output $(STRICT)

lab: .venv/installed
	$(BIN)/jupyter-lab book

notebooks: .venv/installed
	$(BIN)/python book/notebooks.py

cheatsheet: .venv/installed
	$(BIN)/python book/cheatsheet.py $(HTML)

zip: .venv/installed
	@test -f $(HTML)/index.html || $(MAKE) book
	$(BIN)/python book/archive.py $(HTML)

runs: .venv/installed
	$(BIN)/python -m runs.diagnosis

# BENCH="--threads 2 --json speed.json grpo" are options and names for it.
bench: .venv/peers
	$(BIN)/python -W ignore -m benchmarks $(BENCH)

clean:
	rm -rf build dist book/_build .venv

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, not " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[book,test]'
	touch $@

.venv/peers: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[peers,scale]'
	touch $@
