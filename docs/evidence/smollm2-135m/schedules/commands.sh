#!/bin/sh
# The commands behind this report, as python reproduce.py --config configs/smollm2-schedules.json runs them,
# from the project's root.
set -e

# SmolLM2-135M.main
python reasoning_lite.py --config reports/smollm2-schedules/configs/SmolLM2-135M.main.json

# SmolLM2-135M.schedule_forked
python reasoning_lite.py --config reports/smollm2-schedules/configs/SmolLM2-135M.schedule_forked.json

# SmolLM2-135M.measures
python scripts/measure_answers.py --data_dir outputs/experiments/smollm2-schedules/SmolLM2-135M/main --groups lens,attention,samples,contrast,components,capability --n_samples 10 --temperature 1.0 --entailment exact

# SmolLM2-135M.scores
python scripts/score_methods.py --data_dir outputs/experiments/smollm2-schedules/SmolLM2-135M/main --token_key last_token_embedding --val_fraction 0.2 --test_fraction 0.1 --seed 42 --probe_seeds 5 --methods all --turn_scorers saplma,perplexity,all_turn_probe,random_projection --save_path reports/smollm2-schedules/scores/SmolLM2-135M.main.pkl

# SmolLM2-135M.variant_scores
python scripts/score_methods.py --data_dir outputs/experiments/smollm2-schedules/SmolLM2-135M/main --token_key last_token_embedding --val_fraction 0.2 --test_fraction 0.1 --seed 42 --probe_seeds 5 --methods saplma,perplexity,answer_length --turn_scorers saplma --score_dirs outputs/experiments/smollm2-schedules/SmolLM2-135M/schedule_forked --save_path reports/smollm2-schedules/scores/SmolLM2-135M.pkl

# tables
python scripts/make_tables.py --config configs/smollm2-schedules.json
