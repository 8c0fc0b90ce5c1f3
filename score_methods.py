"""Moved to scripts/score_methods.py; the older command line goes on working."""

import runpy
from pathlib import Path

if __name__ == "__main__":
    path = Path(__file__).parent / "scripts" / Path(__file__).name
    runpy.run_path(str(path), run_name="__main__")
