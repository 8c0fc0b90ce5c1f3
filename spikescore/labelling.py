"""Judging first answers in the background while their dialogues go on.

Labels never touch a file: whoever writes the pair asks for the label and writes both, so that a
pair has one writer.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from contextlib import AbstractContextManager

from spikescore.judging import Judge, Judgement
from spikescore.questions import Question


class BackgroundLabels(AbstractContextManager):
    """Runs a judge's coroutines on an event loop of its own thread."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> BackgroundLabels:
        self._thread.start()
        return self

    def submit(self, question: Question, answer: str) -> Future[Judgement]:
        """Start judging; the future never raises for a failed call (the judgement carries it)."""
        call = self._judge.judge(question=question, answer=answer)
        return asyncio.run_coroutine_threadsafe(call, self._loop)

    def __exit__(self, *exc_info: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
