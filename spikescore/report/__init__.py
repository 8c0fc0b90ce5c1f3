"""What a reader sees: comparisons, tables, plots, and the page, made from score books and scored
JSON alone.

Start at `comparison.Comparison`, which every table is made of; `experiment_report` puts the tables
of an experiment together, `eval_report` those of one folder of dialogues.
"""
