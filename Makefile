# PathUp's commands. Each sets up .venv on its first use and shares it with the others.
# Another Python: make demo PYTHON=/path/to/python3.11

VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.pathup-ready
PYTHON ?=

.DEFAULT_GOAL := help
.PHONY: help demo test check bench docs

help:
	@echo "make demo    draw tissue with the shipped model into demo/ and make a page of it"
	@echo "make test    run the tests (some 12 minutes on 2 cores)"
	@echo "make check   lint, security rules and types"
	@echo "make bench   time sampling, cutting, training, bulk generation and evaluation, each beside what it is compared with (some 45 minutes)"
	@echo "make docs    write docs/commands.md and docs/recipes.md anew from the code"

demo: $(READY)
	@$(RUN) -m pathup.demo --model models/atlas --out demo

test: $(READY)
	@OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist loadfile

check: $(READY)
	@$(RUN) -m ruff check .
	@$(RUN) -m mypy

# what each tells lies in bench/ as JSON and as a table
bench: $(READY)
	@mkdir -p bench
	@$(RUN) benchmarks/cutting.py --output bench/cutting.json --table bench/cutting.md
	@$(RUN) benchmarks/training.py --output bench/training.json --table bench/training.md
	@$(RUN) benchmarks/bulk.py --output bench/bulk.json --table bench/bulk.md
	@$(RUN) benchmarks/backends.py --output bench/backends.json --table bench/backends.md
	@$(RUN) benchmarks/scaling.py --output bench/scaling.json --table bench/scaling.md
	@$(RUN) benchmarks/sampling.py --size 1024 --batches 16 --repeats 1 --methods literal equation_6 shifted panorama_half_batched \
	  whole_shifted --output bench/sampling.json --table bench/sampling.md
	@$(RUN) benchmarks/evaluation.py --count 2000 --output bench/evaluation.json --table bench/evaluation.md

docs: $(READY)
	@$(RUN) docs/generate.py

# The stamp is made last, so an interrupted setup is done again.
$(READY): pyproject.toml
	@set -e; \
	if [ ! -x $(RUN) ]; then \
	  found=''; \
	  for python in $(PYTHON) python3.11 python3.12 python3; do \
	    if $$python -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' >/dev/null 2>&1; then \
	      found=$$python; break; \
	    fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo "PathUp needs Python 3.11 or 3.12, and no command here is that; install one, or name it: make PYTHON=/path/to/python3.11" >&2; \
	    exit 1; \
	  fi; \
	  echo "making $(VENV) with $$found"; \
	  if ! $$found -m venv $(VENV); then \
	    rm -f $(RUN); \
	    echo "$$found could not make a virtual environment; install its venv module (Debian and Ubuntu: apt install python3-venv)" >&2; \
	    exit 1; \
	  fi; \
	fi; \
	echo "installing PathUp and what it needs into $(VENV) (once; a few minutes, several GB where PyTorch comes with CUDA)"; \
	$(RUN) -m pip install --quiet --disable-pip-version-check -e '.[dev]'; \
	touch $(READY)
