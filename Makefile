# make demo   train a small captioner on pictures of its own and caption pictures that it has not seen (under 4 minutes)
# make test   the test suite      make lint   style      make slow   the long tests too
# Each makes .venv on first use; VENV=/path/to/venv uses another place, TORCH_INDEX=URL another source of torch.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
TORCH_INDEX ?=
PIP := $(BIN)/pip install --quiet --disable-pip-version-check

.PHONY: demo test slow lint clean

$(VENV)/.installed: requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing requirements into $(VENV) (once; some minutes and, with CUDA, 5 GB)"
	$(if $(TORCH_INDEX),$(PIP) torch torchvision --index-url $(TORCH_INDEX))
	$(PIP) -r requirements.txt
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt
	$(PIP) -r requirements-dev.txt
	touch $@

demo: $(VENV)/.installed
	PATH="$(abspath $(BIN)):$$PATH" bash datasets/demo.sh

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m "not slow" -n auto --dist loadfile

slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n auto --dist loadfile

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf demo vocab_cache results .pytest_cache .ruff_cache
