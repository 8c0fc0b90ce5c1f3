"""Several processes share the items; together they make what one makes alone."""

from __future__ import annotations

import json

from conftest import run_script, start_script
from test_reasoning_lite import pairs_in

from spikescore.processes import Process


def test_shares_are_disjoint_and_cover_all():
    items = list(range(11))
    for world_size in (1, 2, 3, 7, 20):
        shares = [Process(rank, world_size).share(items) for rank in range(world_size)]
        assert sorted(sum(shares, [])) == items


def test_two_processes_make_the_pairs_of_one(config_file, tmp_path):
    command = ["reasoning_lite.py", "--config", config_file]
    started = [
        start_script(*command, env={"RANK": str(rank), "WORLD_SIZE": "2"}) for rank in range(2)
    ]
    for rank, process in enumerate(started):
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        assert f"process {rank} of 2" in out and "wrote 6 pairs" in out
    folder = tmp_path / "outputs"
    run_file = json.loads((folder / "run.json").read_text())
    assert len(run_file["ids"]) == 12
    together = pairs_in(folder)
    # half of them again, by another number of processes
    for name in list(together)[::3]:
        (folder / name).unlink()
    assert run_script(*command).returncode == 0
    assert pairs_in(folder) == together
    for path in folder.iterdir():
        path.unlink()
    assert run_script(*command).returncode == 0
    assert pairs_in(folder) == together
