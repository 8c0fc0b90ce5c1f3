#!/bin/sh
# The commands behind this report, as python reproduce.py --config configs/tiny-schedules.json runs them,
# from the project's root.
set -e

# tiny.main
python reasoning_lite.py --config reports/tiny-schedules/configs/tiny.main.json

# tiny.schedule_forked
python reasoning_lite.py --config reports/tiny-schedules/configs/tiny.schedule_forked.json

# tiny.measures
python scripts/measure_answers.py --data_dir outputs/experiments/tiny-schedules/tiny/main --groups lens,attention,samples,questions,contrast,components,rewordings,choices,capability --n_samples 10 --temperature 1.0 --entailment exact

# tiny.scores
python scripts/score_methods.py --data_dir outputs/experiments/tiny-schedules/tiny/main --token_key last_token_embedding --val_fraction 0.2 --test_fraction 0.3 --seed 42 --probe_seeds 5 --methods all --turn_scorers saplma,sep,perplexity,reasoning_score,sharpness,all_turn_probe,random_projection --save_path reports/tiny-schedules/scores/tiny.main.pkl

# tiny.variant_scores
python scripts/score_methods.py --data_dir outputs/experiments/tiny-schedules/tiny/main --token_key last_token_embedding --val_fraction 0.2 --test_fraction 0.3 --seed 42 --probe_seeds 5 --methods saplma,perplexity,answer_length --turn_scorers saplma --score_dirs outputs/experiments/tiny-schedules/tiny/schedule_forked --save_path reports/tiny-schedules/scores/tiny.pkl

# tables
python scripts/make_tables.py --config configs/tiny-schedules.json
