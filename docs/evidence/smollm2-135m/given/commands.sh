#!/bin/sh
# The commands behind this report, as python reproduce.py --config configs/smollm2-given.json runs them,
# from the project's root.
set -e

# SmolLM2-135M.main
python reasoning_lite.py --config reports/smollm2-given/configs/SmolLM2-135M.main.json

# SmolLM2-135M.measures
python scripts/measure_answers.py --data_dir outputs/experiments/smollm2-given/SmolLM2-135M/main --groups attention,samples,questions,contrast,components,capability --n_samples 10 --temperature 1.0 --entailment exact

# SmolLM2-135M.scores
python scripts/score_methods.py --data_dir outputs/experiments/smollm2-given/SmolLM2-135M/main --token_key last_token_embedding --val_fraction 0.2 --test_fraction 0.3 --seed 42 --probe_seeds 5 --methods all --turn_scorers saplma,sep,perplexity,reasoning_score,sharpness,all_turn_probe,random_projection --save_path reports/smollm2-given/scores/SmolLM2-135M.main.pkl

# tables
python scripts/make_tables.py --config configs/smollm2-given.json
