# For a newcomer: `make demo`, `make tables`, `make test`. Each makes .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo tables test clean

demo: $(VENV)/.run
	$(BIN)/python ./reasoning_lite.py
	$(BIN)/python ./semantic-entropy-probes/probes_trainer.py --data_dirs ./outputs/demo/trivia --save_path ./probe_output/demo_trivia.pkl --epochs 50
	$(BIN)/python ./metrics_probe.py --json_dir ./outputs/demo --pkl_dir ./outputs/demo --probe_path ./probe_output/demo_trivia.pkl
	$(BIN)/python ./eval_probe.py --data_dir ./outputs/demo --report_dir ./reports/quick

tables: $(VENV)/.run
	$(BIN)/python ./reproduce.py --config ./configs/tiny.json

test: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadscope --no-loadscope-reorder

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: requirements.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

$(VENV)/.test: requirements.txt pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -r requirements.txt -e ".[test,serving]"
	touch $@ $(VENV)/.run

clean:
	rm -rf outputs/demo outputs/experiments/tiny reports/quick reports/tiny probe_output/demo_trivia.*
