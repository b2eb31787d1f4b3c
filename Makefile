# Each target does its own set-up; a fresh Debian 12 with Python 3.11 and make is enough.
VENV := .venv
PYTHON ?= python3
# Two threads of math a process: the tests and the demo are written for two cores.
export OMP_NUM_THREADS ?= 2

.PHONY: demo test test-slow lint format graphics clean

demo: $(VENV)/ready
	$(VENV)/bin/python examples/demo.py

test: $(VENV)/ready graphics
	$(VENV)/bin/python -m pytest

test-slow: $(VENV)/ready graphics
	$(VENV)/bin/python -m pytest -m slow

lint: $(VENV)/ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(VENV)/ready
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "found Python %d.%d, expected 3.11 or newer: make PYTHON=python3.11 ..." % sys.version_info[:2])'
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[all,dev]'
	touch $@

# The simulator renders in software, for which Debian's libraries are needed. Without them its tests are skipped.
GRAPHICS := libegl1 libopengl0 libgl1-mesa-dri
graphics:
	@ldconfig -p | grep -q libEGL.so.1 && ldconfig -p | grep -q libOpenGL.so.0 || \
	{ test "$$(id -u)" = 0 && apt-get -qq update && apt-get -qq install -y $(GRAPHICS) > /dev/null; } || \
	echo "the simulator's tests will be skipped; for them: apt-get install $(GRAPHICS)"

clean:
	rm -rf $(VENV) demo build dist *.egg-info
