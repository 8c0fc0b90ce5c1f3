"""What a run stands on: limits hold inside and are gone after it, also when something fails."""

import asyncio
import queue
from contextlib import asynccontextmanager

import pytest
import torch
from threadpoolctl import threadpool_info

from spikescore.runtime import EventLoop, one_thread


def test_threads_are_limited_inside_alone():
    before = torch.get_num_threads()
    pools = {pool["filepath"]: pool["num_threads"] for pool in threadpool_info()}
    with pytest.raises(KeyError), one_thread():
        assert torch.get_num_threads() == 1
        assert {pool["num_threads"] for pool in threadpool_info()} == {1}
        raise KeyError
    assert torch.get_num_threads() == before
    assert {pool["filepath"]: pool["num_threads"] for pool in threadpool_info()} == pools


def test_an_event_loop_ends_what_is_under_way_and_then_closes_what_it_opened():
    happened, reports = [], queue.SimpleQueue()

    @asynccontextmanager
    async def resource():
        yield "open"
        happened.append("closed")

    async def forever():
        try:
            await asyncio.sleep(10_000)
        except asyncio.CancelledError:
            happened.append("cancelled")
            raise

    async def value(number):
        return 1 / number

    with pytest.raises(KeyError, match="mine"):
        with EventLoop() as loop:
            assert loop.open(resource()) == "open"
            assert loop.run(value(2)) == 0.5
            with pytest.raises(ZeroDivisionError):
                loop.run(value(0))
            loop.start(value(4), reports.put)
            assert reports.get() == 0.25
            loop.start(value(0), reports.put)
            assert isinstance(reports.get(), ZeroDivisionError)
            loop.start(forever(), reports.put)
            loop.run(asyncio.sleep(0))
            raise KeyError("mine")
    assert happened == ["cancelled", "closed"] and reports.empty()
