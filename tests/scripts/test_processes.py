"""Several processes share the items; together they make what one makes alone."""

from __future__ import annotations

import json

import numpy as np

from spikescore.pairs import read_states
from spikescore.runtime import Process
from tests.helpers.oracles import assert_same_pairs
from tests.helpers.running import LIMIT, run_script, start_script


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
        out, err = process.communicate(timeout=LIMIT)
        assert process.returncode == 0, err
        assert f"process {rank} of 2" in out and "wrote 6 pairs" in out
    folder = tmp_path / "outputs"
    run_file = json.loads((folder / "run.json").read_text())
    assert len(run_file["ids"]) == 12
    alone = tmp_path / "alone"
    assert run_script(*command, "--set", f"output_dir={alone}").returncode == 0
    assert_same_pairs(folder, alone, n=12)
    # a third of them again, by another number of processes
    for path in sorted(folder.glob("sum-*"))[::3]:
        path.unlink()
    assert run_script(*command).returncode == 0
    assert_same_pairs(folder, alone, n=12)


def test_tensor_parallel_processes_write_the_dialogues_of_one(config_file, tmp_path):
    greedy = ["--config", config_file, "--set", "temperature=0"]
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "reasoning_lite.py"]
    sliced = run_script(*launch, *greedy, "--set", "tp_plan=auto")
    assert sliced.returncode == 0, sliced.stderr
    assert sliced.stdout.count("wrote 12 pairs") == 1
    whole = tmp_path / "whole"
    assert run_script("reasoning_lite.py", *greedy, "--set", f"output_dir={whole}").returncode == 0
    for path in whole.glob("sum-*.json"):
        one = json.loads(path.read_text())
        other_path = tmp_path / "outputs" / path.name
        other = json.loads(other_path.read_text())
        assert [s["response_ids"] for s in one["cot_steps"]] == [
            s["response_ids"] for s in other["cot_steps"]
        ]
        mine, theirs = (read_states(p.with_suffix(".pkl")) for p in (path, other_path))
        for turn, by_key in mine.items():
            for key, array in by_key.items():
                assert np.allclose(array, theirs[turn][key], atol=5e-3)


def test_a_tensor_parallel_plan_alone_is_refused(config_file):
    result = run_script("reasoning_lite.py", "--config", config_file, "--set", "tp_plan=auto")
    assert result.returncode == 2 and "torchrun" in result.stderr
