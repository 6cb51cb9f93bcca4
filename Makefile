# The two commands of the README. They need Python >= 3.10 with venv, and a package index; all they install goes to .venv.
PYTHON ?= python3
VENV := .venv
ifeq ($(OS),Windows_NT)
  RUN := $(VENV)/Scripts/python
else
  RUN := $(VENV)/bin/python
endif

.PHONY: demo test lint format clean

demo: $(VENV)/installed
	$(RUN) -m DiffDRRCore demo --output demo-output $(if $(CT),--ct "$(CT)") $(if $(XRAY),--xray "$(XRAY)")

test: $(VENV)/installed
	$(RUN) -m pytest $(ARGS)

lint: $(VENV)/installed
	$(RUN) -m ruff check DiffDRRCore DiffDRRSlicer Testing Resources
	$(RUN) -m ruff format --check DiffDRRCore DiffDRRSlicer Testing Resources

format: $(VENV)/installed
	$(RUN) -m ruff format DiffDRRCore DiffDRRSlicer Testing Resources

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10) and 'DiffDRRSlicer needs Python 3.10 or newer: make PYTHON=python3.12')"
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[test]"
	$(RUN) -c "from pathlib import Path; Path('$(VENV)/installed').touch()"

clean:
	$(PYTHON) -c "import shutil; [shutil.rmtree(name, ignore_errors=True) for name in ('$(VENV)', '.cache', 'demo-output', 'build')]"
