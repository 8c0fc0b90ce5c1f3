"""A probe reads a hidden state and says how doubtful the answer is.

What it learns from (`data`), how (`training`, with `network` and `linear`), what it is worth
(`measuring`), and the file it is kept in (`probe`). Start at `probe.Probe`.
"""
