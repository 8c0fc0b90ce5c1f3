"""The library behind the scripts: ground rooms, and nine packages whose imports run one way.

On the ground: `errors`, `plugins`, `runtime`, `files`, `journal`, `pickles`, `pairs` (the pair on
disk). Then, lowest first: `stats`, `data`, `model`, `labels`, `dialogues` (stage 1), `measures`,
`probes` (stage 2), `detectors`, `report` (stage 3). Each package says what it is for and where to
start reading.
Modules know no argparse and never import a script; tests/test_layers.py holds the rules.
"""
