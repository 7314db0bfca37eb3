# Everything here needs Python ≥ 3.11 and make; the rest is installed into .venv at the versions of constraints.txt.
.DEFAULT_GOAL := help
.PHONY: help demo test parity clean

# Names to try in turn; a name may exist and yet start nothing, or an older Python.
PYTHON ?= python3.13 python3.12 python3.11 python3
DATA :=
ARGS :=
DEMO_CONFIG := configs/pipelines/demo.py$(if $(DATA),:data=$(DATA))
# /path/to/photos → runs/demo-path-to-photos, so that every data set has a folder of its own
WORKDIR := runs/demo$(if $(DATA),-$(shell printf %s '$(DATA)' | sed -E 's|^[^[:alnum:]]+||; s|/+$$||; s|[^[:alnum:]._-]+|-|g'))

help:
	@echo 'make demo                       MAE → WSP → transfer on scanned digits, about 10 minutes on 2 cores: runs/demo/report.html'
	@echo 'make demo DATA=cifar10          the same on any image data set that TFDS names: runs/demo-cifar10/'
	@echo 'make demo DATA=/path/to/photos  the same on your own folders CLASS/*.jpg: runs/demo-path-to-photos/'
	@echo 'make test                       the tests; ARGS is handed to pytest: make test ARGS="-k report -x"'
	@echo 'make parity                     our models against timm, transformers, torchvision and open_clip, which it installs (CPU builds, about 1 GB)'
	@echo 'make clean                      removes .venv and caches; keeps runs/'
	@echo
	@echo 'The first demo or test also installs what they need into .venv. PYTHON=/path/to/python chooses another Python.'

demo: .venv/.ready
	@echo "Training the demo into $(WORKDIR)$(if $(DATA),, (about 10 minutes on 2 cores)); if stopped, the same command goes on."
	@.venv/bin/python -m mae_pp_jax pipeline '--config=$(DEMO_CONFIG)' '--workdir=$(WORKDIR)' $(ARGS)

test: .venv/.ready
	@.venv/bin/python -m pytest $(ARGS)

parity: .venv/.parity
	@.venv/bin/python -m pytest tests/parity tests/interop $(ARGS)

clean:
	@rm -rf .venv build dist *.egg-info .pytest_cache
	@find mae_pp_jax configs tests -name __pycache__ -type d -prune -exec rm -rf {} +

# .installing marks an installation under way. Found at the start, the one before was interrupted: begin with a new
# environment. It becomes .ready with the time it had, so that a file changed meanwhile leads to another installation.
.venv/.ready: setup.py pyproject.toml constraints.txt
	@if [ -e .venv/.installing ] || [ ! -e .venv/bin/python ]; then rm -rf .venv; fi
	@mkdir -p .venv && touch .venv/.installing
	@echo 'Installing the pinned packages into .venv (once, 3 GB; usually 2 to 5 minutes) ...'
	@[ -e .venv/bin/python ] || { for python in $(PYTHON); do \
	    "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 \
	      && exec "$$python" -m venv .venv; \
	  done; \
	  rm -rf .venv; echo 'make: no Python 3.11 or newer with its venv module among: $(PYTHON); install one or say PYTHON=/path/to/python' >&2; \
	  exit 2; }
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-input --progress-bar=off \
	  --constraint constraints.txt --editable '.[test,notebooks]' \
	  || { echo 'make: the installation failed (see above); the same command tries again' >&2; exit 1; }
	@mv .venv/.installing .venv/.ready

# The reference packages. PyTorch comes from its own index of CPU builds: on Linux the ones elsewhere bring gigabytes of
# CUDA, so there the exact CPU build is asked for.
TORCH := torch==2.13.0$(if $(filter Linux,$(shell uname -s)),+cpu)
.venv/.parity: .venv/.ready
	@echo 'Installing PyTorch (CPU), timm, transformers, torchvision and open_clip into .venv (once, about 1 GB) ...'
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-input --progress-bar=off \
	  --retries 1 --timeout 30 --extra-index-url https://download.pytorch.org/whl/cpu \
	  --constraint constraints.txt '$(TORCH)' --editable '.[test,torch]' \
	  || { echo 'make: the installation failed (see above); the same command tries again' >&2; exit 1; }
	@touch .venv/.parity
