# Everything a clone needs, on a machine with Python >= 3.10 and g++ >= 11:
#   make demo        carry noise to handwritten digits and draw it
#   make check       lint and tests of what changed, within a minute
#   make test        lint, build, the whole suite but its slow part
#   make test-slow   the slow part
#   make fuzz        100,000 drawn calls of every public function against dense float64; SEED=n for others
#   make sanitize    the fuzzer on builds with AddressSanitizer, UndefinedBehaviorSanitizer, ThreadSanitizer
#   make test-versions  import, operators and interpreter with the oldest and the newest torch and triton (gigabytes)
#   make bench       time this library beside its peers; fills bench/results/
#   make coverage    the suite again, with the lines of Python that it runs
#   make lint        ruff, clang-format, generated code, types
#   make format      let ruff and clang-format lay out the sources
#   make compile-gpu  compile the GPU kernels, without a GPU, and count their registers
#   make codegen     print the profile table to C++, Triton and KeOps
# Each makes .venv first, where it is missing or older than its description.

PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip --disable-pip-version-check install -qq --constraint constraints.txt
CSRC := $(shell find csrc -name '*.cpp' -o -name '*.h')
FORMATTED := $(filter-out %_generated.h,$(CSRC))

SEED ?= 0

.PHONY: test-versions compile-gpu demo check test test-slow coverage fuzz sanitize sanitize-teams sanitize-memory sanitize-threads bench lint types format codegen build clean
.DELETE_ON_ERROR:

# --- the environment, one stamp a set of dependencies ---------------------------------------------------------------

.venv/base.stamp: pyproject.toml setup.py constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing into .venv (about a minute) ..."
	$(INSTALL) setuptools wheel pybind11
	$(INSTALL) --no-build-isolation --editable '.[experiments]'
	@touch $@

.venv/dev.stamp: .venv/base.stamp
	$(INSTALL) --no-build-isolation --editable '.[dev]'
	@touch $@

.venv/bench.stamp: .venv/base.stamp
	$(INSTALL) --no-build-isolation --editable '.[bench]'
	@touch $@

.venv/built.stamp: .venv/base.stamp $(CSRC)
	$(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@

build: .venv/built.stamp

# --- what a visitor runs ----------------------------------------------------------------------------------------------

demo: build
	rm -rf demo
	$(BIN)/gwf-fast run digits --out demo
	@echo; echo "The picture is here:"; ls $(CURDIR)/demo/*.png

bench: build .venv/bench.stamp
	$(BIN)/python -m bench

# --- what a developer runs --------------------------------------------------------------------------------------------

# A process a core, of one OpenMP thread unless a test asks for more: on a loaded machine two threads waste several times
# the processor time. A container's share of the cores counts, not the machine's number.
JOBS ?= $(shell awk -v all=$$(nproc) '{ n = int($$1 / $$2); print ($$1 == "max" || n > all) ? all : (n ? n : 1) }' \
	/sys/fs/cgroup/cpu.max 2>/dev/null || nproc)
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal

test: lint build
	$(PYTEST) -m "not slow"

check: build .venv/dev.stamp
	$(BIN)/python -m tests.check --jobs $(JOBS)

# The report goes to build/coverage; processes of their own, and compiled code, are not seen.
coverage: build .venv/dev.stamp
	$(PYTEST) -m "not slow" --cov --cov-report=term:skip-covered --cov-report=html

test-slow: build .venv/dev.stamp
	$(BIN)/python -m pytest -m slow

# In subprocesses, under a watchdog; a finding is printed with the line that makes the call again.
fuzz: build .venv/dev.stamp
	$(BIN)/python -m tests.fuzz --calls 100000 --seed $(SEED)

# A package with instrumented objects in build/sanitize, beside the tests; a report of a sanitizer ends the worker, and
# is a crash to the fuzzer. A build takes some minutes a core; what is there already is not built again. Of the instruction
# sets one is compiled and run so, the best that this processor has; SANITIZE_ISA=avx2 for another.
SANITIZED = cd build/sanitize/$(1) && LD_PRELOAD="$(shell g++ -print-file-name=$(2)) $(shell g++ -print-file-name=libstdc++.so)" \
	GWF_FAST_ISA=$(SANITIZE_ISA)
SANITIZE_CALLS ?= 4000
SANITIZE_ISA ?= $(shell $(BIN)/python -c "from gwf_fast import _cpu; print(_cpu.instruction_set())")
comma := ,

define sanitized-build
GWF_FAST_SANITIZE=$(2) GWF_FAST_SANITIZE_ISA=$(SANITIZE_ISA) $(BIN)/python setup.py --quiet build --build-base build/sanitize --build-lib build/sanitize/$(1)
rm -rf build/sanitize/$(1)/tests && cp -r tests build/sanitize/$(1)/tests
endef

sanitize: sanitize-teams sanitize-memory sanitize-threads

# The C++ tests: threads, exceptions and interruptions.
sanitize-teams: build .venv/dev.stamp
	$(BIN)/python -m pytest -q tests/csrc/test_team.py

sanitize-memory: build .venv/dev.stamp
	$(call sanitized-build,memory,address$(comma)undefined)
	$(call SANITIZED,memory,libasan.so) ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
		$(CURDIR)/$(BIN)/python -m tests.fuzz --calls $(SANITIZE_CALLS) --seed $(SEED)

# More points than usual, for small calls run in one thread. The kernel's random addresses are not ThreadSanitizer's.
sanitize-threads: build .venv/dev.stamp
	$(call sanitized-build,threads,thread)
	$(call SANITIZED,threads,libtsan.so) TSAN_OPTIONS=halt_on_error=1:exitcode=66 setarch -R \
		$(CURDIR)/$(BIN)/python -m tests.fuzz --calls $(SANITIZE_CALLS) --seed $(SEED) --larger 8 --mode plain

# In environments of their own under build/versions: a few minutes and gigabytes each, the first time.
test-versions: build
	$(BIN)/python tests/versions.py

# Every GPU kernel to machine code, no GPU needed: registers, spills, instructions beside KeOps'. Half an hour on two
# cores; a run that was stopped goes on where it was. The suite compiles a subset.
compile-gpu: build .venv/dev.stamp
	$(BIN)/python bench/compile_gpu.py --jobs 2 --out build/gpu_rows.jsonl
	$(BIN)/python bench/gpu_table.py build/gpu_rows.jsonl
	$(BIN)/python build_cuda.py
	$(BIN)/python bench/keops_sass.py --before bench/results/gpu/sass_before.json --out build/sass.json

codegen: build .venv/dev.stamp
	$(BIN)/python -m gwf_fast.kernels.table.codegen

format: .venv/dev.stamp
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(FORMATTED)

lint: build .venv/dev.stamp types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(FORMATTED)
	$(BIN)/python -m gwf_fast.kernels.table.codegen --check

# mypy reads the package as it is installed: it can't follow the mapping of kernels/ to gwf_fast.kernels.
types: .venv/dev.stamp
	@rm -rf build/typecheck
	@$(BIN)/python setup.py --quiet build_py --build-lib build/typecheck
	@cp -r bench tests build_cuda.py build/typecheck/
	cd build/typecheck && ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache \
		--package gwf_fast --package bench --package tests

clean:
	rm -rf build dist demo .venv gwf_fast/*.so *.egg-info
