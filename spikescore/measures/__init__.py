"""What the model is asked after stage 1: samples and what they mean, layers, attention, questions
about its own answer.

Beside a pair (`file`, made by `groups`) or as a run folder for semantic-entropy probes
(`answer_run`, `run_folder`). Start at `groups.Measurer`; the formulae are in `formulas`.
"""
