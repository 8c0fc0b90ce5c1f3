# For a newcomer: `make demo`, `make tables`, `make test`. Each makes .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VLLM_ENV ?= .venv-vllm
CODE := $(wildcard *.py semantic-entropy-probes/*.py) $(shell find spikescore -name '*.py')

.PHONY: demo tables test test-vllm clean

# on SmolLM2-135M-Instruct; where that cannot be fetched, on the tiny model
demo: $(VENV)/.run
	@$(BIN)/python ./models/fetch.py smollm2-135m-instruct; case $$? in 0) report=quick;; \
	    1) report=quick_tiny; echo "the demo runs on the tiny model instead";; *) exit 2;; esac; \
	make --no-print-directory reports/$$report/report.html && \
	sed -n 3p reports/$$report/summary.md && echo "open reports/$$report/report.html"

reports/quick/report.html: config_demo.json $(wildcard datasets/samples/*) $(CODE)
	$(BIN)/python ./reasoning_lite.py --config ./config_demo.json --set dataset_path=./datasets/samples/triviaqa.json --set output_dir=./outputs/demo_train --set max_steps=1 --set sampling.n=150
	$(BIN)/python ./semantic-entropy-probes/probes_trainer.py --data_dirs ./outputs/demo_train --save_path ./probe_output/demo.pkl --epochs 50
	$(BIN)/python ./reasoning_lite.py --config ./config_demo.json
	$(BIN)/python ./metrics_probe.py --json_dir ./outputs/demo --pkl_dir ./outputs/demo --probe_path ./probe_output/demo.pkl
	$(BIN)/python ./eval_probe.py --data_dir ./outputs/demo --report_dir ./reports/quick

reports/quick_tiny/report.html: config.json $(wildcard datasets/tiny/*) $(CODE)
	$(BIN)/python ./reasoning_lite.py
	$(BIN)/python ./semantic-entropy-probes/probes_trainer.py --data_dirs ./outputs/tiny/trivia --save_path ./probe_output/tiny_trivia.pkl --epochs 50
	$(BIN)/python ./metrics_probe.py --json_dir ./outputs/tiny --pkl_dir ./outputs/tiny --probe_path ./probe_output/tiny_trivia.pkl
	$(BIN)/python ./eval_probe.py --data_dir ./outputs/tiny --report_dir ./reports/quick_tiny

tables: $(VENV)/.run
	$(BIN)/python ./reproduce.py --config ./configs/tiny.json

test: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadscope --no-loadscope-reorder

# a real vLLM server on the CPU, in an environment of its own: docs/cluster.md
test-vllm: $(VENV)/.test $(VLLM_ENV)/.made
	VLLM=$(abspath $(VLLM_ENV))/bin/vllm $(BIN)/python -m pytest -rs tests/model/test_vllm.py

$(VLLM_ENV)/.made: scripts/make_vllm.sh
	PYTHON=$(PYTHON) bash scripts/make_vllm.sh $(VLLM_ENV)
	touch $@

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: requirements.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

$(VENV)/.test: requirements.txt pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -r requirements.txt -e ".[test,serving]"
	touch $@ $(VENV)/.run

clean:
	rm -rf outputs/demo outputs/demo_train outputs/tiny outputs/experiments/tiny reports/quick reports/quick_tiny reports/tiny probe_output/demo.* probe_output/tiny_trivia.*
