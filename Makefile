# From nothing but git, make and Python 3.11+:  make demo,  make test.
SHELL := bash
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=
PAGES := nbs/learn/path.ipynb $(patsubst %,nbs/reference/%.ipynb,results studies limits api)
export PYTHON
export MUJOCO_GL ?= egl
export HF_HUB_OFFLINE ?= 1
export DOCS_OUT
export UV_HTTP_TIMEOUT ?= 180

.PHONY: help demo dash test export dashboards check clean-notebooks readme pages pictures docs-check world

help: ## this list
	@echo "make demo and make test need only git, make and Python 3.11+; they install the rest into .venv."
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/.synced render ## the whole line on the shipped videos: features, translator, pairs, encoder, table, report (ARGS="--help" for more)
	@$(BIN)/rosetta demo $(ARGS)

dash: .venv/.synced ## a board of the demo's run in the browser (ARGS=pairs, map or retrieval)
	@$(BIN)/rosetta dash $(or $(ARGS),pairs)

test: .venv/.synced render browser ## every notebook, every test (ARGS="-k matching" for some)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --durations=15 tests $(ARGS)

export: .venv/.synced ## write viewpoint_rosetta/*.py from the notebooks
	@$(BIN)/nbdev_export

check: .venv/.synced ## the modules are what the notebooks say, the notebooks are clean, the README is the index
	@$(BIN)/python -m pytest -q tests/test_house.py

clean-notebooks: .venv/.synced ## strip what must not be committed from the notebooks
	@$(BIN)/python scripts/clean_notebooks.py

readme: .venv/.synced ## run nbs/index.ipynb and write README.md from it
	@$(BIN)/jupyter nbconvert --log-level WARN --to notebook --execute --inplace nbs/index.ipynb
	@$(BIN)/nbdev_clean --fname nbs/index.ipynb
	@$(BIN)/python scripts/readme.py > .README.md && mv .README.md README.md

dashboards: .venv/.synced ## run the dashboards' pages for the site, with pictures in the place of widgets, on the demo's run
	@VR_STATIC=1 $(BIN)/jupyter nbconvert --log-level WARN --to notebook --execute --inplace nbs/dashboards/*.ipynb
	@$(BIN)/python scripts/clean_notebooks.py

pages: .venv/.synced ## run the pages that list or show the others (learning path, results, studies, limits, api)
	@$(BIN)/jupyter nbconvert --log-level WARN --to notebook --execute --inplace $(PAGES)
	@$(BIN)/python scripts/clean_notebooks.py

docs-check: .venv/.synced ## render the site offline; broken links, missing pictures, heavy pages (DOCS_OUT=_site to keep the pages)
	@$(BIN)/python scripts/docs_check.py

world: .venv/.synced render ## render the shipped world again (viewpoint_rosetta/assets/world)
	@$(BIN)/rosetta world --small $(ARGS)

pictures: .venv/.synced render browser ## pictures of every interactive view, taken in a browser on the demo's run (ARGS="--only map")
	@$(BIN)/rosetta demo
	@$(BIN)/python scripts/pictures.py $(ARGS)

.PHONY: render browser
render browser:
	@scripts/bootstrap $@

.bootstrap/bin/uv:
	@scripts/bootstrap uv

.venv/.synced: pyproject.toml uv.lock | .bootstrap/bin/uv
	@echo "installing the locked Python packages into .venv (about 7 GB; minutes at first, seconds later)"
	@.bootstrap/bin/uv sync --frozen --python .bootstrap/bin/python
	@touch $@
