# make scan: install, build, and scan the shipped sample prompts with the embedded model.
# make test: install with the test extras and run the test suite.
# Both can run again, and are fast the second time.

PYTHON ?= python3
VENV ?= .venv
OUT ?= runs/sample
export OMP_WAIT_POLICY ?= PASSIVE

BUILD_INPUTS := pyproject.toml setup.py CMakeLists.txt $(wildcard csrc/*.* csrc/*/*.*)
# keep a torch that the interpreter already has, such as that of a GPU image
SYSTEM_TORCH := $(shell $(PYTHON) -c "import torch" 2>/dev/null && echo --system-site-packages)
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check

.PHONY: scan test clean
.DELETE_ON_ERROR:

scan: $(VENV)/installed
	$(VENV)/bin/dori-fast scan dori_fast/demo/sample_prompts.csv --out $(OUT)

test: $(VENV)/installed-dev
	$(VENV)/bin/python -m pytest --numprocesses logical --dist worksteal --slowest-files 10

clean:
	rm -rf $(VENV) build dist *.egg-info dori_fast/*.so

# torch and the build tools first, so that the extension is built against the torch it runs with
$(VENV)/tools:
	$(PYTHON) -m venv $(SYSTEM_TORCH) $(VENV)
	$(PIP) install --quiet "torch>=2.11,<=2.13.0" "setuptools>=77" wheel ninja cmake pybind11
	@$(VENV)/bin/python -c "import torch; cuda = torch.version.cuda; \
	    cuda and not torch.cuda.is_available() and print('note: torch is a CUDA build but there \
	is no CUDA device; on a CPU machine install the smaller CPU wheel of torch first')"
	touch $@

$(VENV)/installed: $(VENV)/tools $(BUILD_INPUTS)
	$(PIP) install --quiet --no-build-isolation -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/tools $(BUILD_INPUTS)
	DORI_REQUIRE_EXTENSION=1 $(PIP) install --quiet --no-build-isolation -e ".[dev]"
	touch $@ $(VENV)/installed
