"""The limit on threads holds inside, and is gone after it, also when something fails."""

import os

import pytest
import torch
from threadpoolctl import threadpool_info

from spikescore.runtime import limited_threads, threads_for


def test_threads_are_limited_inside_alone():
    before = torch.get_num_threads()
    pools = {pool["filepath"]: pool["num_threads"] for pool in threadpool_info()}
    with pytest.raises(KeyError), limited_threads(1):
        assert torch.get_num_threads() == 1
        assert {pool["num_threads"] for pool in threadpool_info()} == {1}
        raise KeyError
    assert torch.get_num_threads() == before
    assert {pool["filepath"]: pool["num_threads"] for pool in threadpool_info()} == pools


def test_small_models_get_one_thread():
    assert threads_for(0) == threads_for(7 * 256 * 2) == 1
    assert threads_for(33 * 4096 * 2) == min(8, len(os.sched_getaffinity(0)))
