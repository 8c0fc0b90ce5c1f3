#!/bin/sh
# The commands behind this report, as python reproduce.py --config configs/smollm2-retrieval.json runs them,
# from the project's root.
set -e

# the questions without their passages, and the passages as documents
PYTHONPATH=. python docs/evidence/smollm2-135m/retrieval/squad_open.py make datasets/squad_v2/dev-v2.0.json datasets/squad_open

# SmolLM2-135M.main
python reasoning_lite.py --config reports/smollm2-retrieval/configs/SmolLM2-135M.main.json

# SmolLM2-135M.retrieval
python reasoning_lite.py --config reports/smollm2-retrieval/configs/SmolLM2-135M.retrieval.json

# SmolLM2-135M.scores
python scripts/score_methods.py --data_dir outputs/experiments/smollm2-retrieval/SmolLM2-135M/main --token_key last_token_embedding --val_fraction 0.2 --test_fraction 0.1 --seed 42 --probe_seeds 5 --methods saplma,perplexity,mean_token_entropy,answer_length,domain_identity --turn_scorers saplma,perplexity --save_path reports/smollm2-retrieval/scores/SmolLM2-135M.main.pkl

# SmolLM2-135M.variant_scores
python scripts/score_methods.py --data_dir outputs/experiments/smollm2-retrieval/SmolLM2-135M/main --token_key last_token_embedding --val_fraction 0.2 --test_fraction 0.1 --seed 42 --probe_seeds 5 --methods saplma,perplexity,answer_length --turn_scorers saplma --score_dirs outputs/experiments/smollm2-retrieval/SmolLM2-135M/retrieval --save_path reports/smollm2-retrieval/scores/SmolLM2-135M.pkl

# tables
python scripts/make_tables.py --config configs/smollm2-retrieval.json

# how often the question's own paragraph was retrieved; SpikeScore with passages and without
PYTHONPATH=. python docs/evidence/smollm2-135m/retrieval/squad_open.py found outputs/experiments/smollm2-retrieval/SmolLM2-135M/retrieval
PYTHONPATH=. python docs/evidence/smollm2-135m/retrieval/squad_open.py spikes reports/smollm2-retrieval/scores/SmolLM2-135M.retrieval.pkl reports/smollm2-retrieval/scores/SmolLM2-135M.main.pkl
