"""Numbers about scores: SpikeScore and other functionals of a trajectory, AUROC with bootstrap and
DeLong, operating points, agreement, the paper's theory. Pure numpy: it knows no file and no model.

Start at `trajectory` (the paper's formula), then `roc` and `bootstrap` (what a table's cell is).
"""
