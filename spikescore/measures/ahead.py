"""Judging while others are still generated: the judges' calls begin when a question is answered.

What the judges say goes into their reply cache, where judging and measuring then find it: nothing
else passes from here to there, so that a run that is stopped, or a call that failed, needs no care.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future, as_completed
from typing import Any

from spikescore.data.question import Question
from spikescore.labels.entailment import Entailment, LLMEntailment
from spikescore.labels.judges import Accuracy, ChatJudge
from spikescore.measures.clustering import AT_ONCE, cluster
from spikescore.measures.run_plan import RunSettings
from spikescore.runtime import EventLoop, progress


class JudgingAhead:
    """Asks the chat models among the judges of a run about each question that `begin` is told of.

    A context manager: leaving it waits for all replies, or gives up those under way where it is
    left by an error or Ctrl-C. `begin` waits while `AT_ONCE` questions are being judged, so that
    generation does not run away from a slow judge.
    """

    def __init__(
        self, accuracy: Accuracy, entailment: Entailment | None, settings: RunSettings
    ) -> None:
        self._judge = accuracy.judge if isinstance(accuracy.judge, ChatJudge) else None
        self._entailment = entailment if isinstance(entailment, LLMEntailment) else None
        self._settings = settings
        self._room = threading.Semaphore(AT_ONCE)
        self._begun: list[Future[None]] = []
        self._failed: BaseException | None = None

    def __enter__(self) -> JudgingAhead:
        askers = self._judge, self._entailment and self._entailment.asker
        self._loop = EventLoop(*filter(None, askers)).__enter__()
        return self

    def begin(self, question: Question, entry: dict[str, Any]) -> None:
        """Begin to ask about a question's answers. UserError when a server refuses key or model."""
        if not (self._judge or self._entailment):
            return
        self._room.acquire()
        if self._failed:
            raise self._failed
        future = self._loop.begin(self._ask(question, entry))
        future.add_done_callback(self._done)
        self._begun.append(future)

    def _done(self, future: Future[None]) -> None:
        if not future.cancelled():
            self._failed = self._failed or future.exception()
        self._room.release()

    async def _ask(self, question: Question, entry: dict[str, Any]) -> None:
        first, samples = entry["most_likely_answer"], entry["responses"]
        calls: list[Coroutine[Any, Any, Any]] = []
        if self._judge:
            answers = [(first["response"], first["accuracy"])]
            if self._settings.compute_accuracy_at_all_temps:
                answers += [(response[0], response[3]) for response in samples]
            calls += [
                self._judge.judge(question=question, answer=answer)
                for answer, accuracy in answers
                if accuracy is None
            ]
        if self._entailment:
            asked = entry["question"] if self._settings.condition_on_question else None
            strict = self._settings.strict_entailment
            texts = [response[0] for response in samples]
            calls.append(cluster(asked, texts, self._entailment, strict=strict))
        await asyncio.gather(*calls)

    def __exit__(self, kind: type[BaseException] | None, *exc_info: object) -> None:
        try:
            if kind is None:
                bar = progress(
                    as_completed(self._begun), "judging", total=len(self._begun), leave=False
                )
                for future in bar:
                    future.result()
        finally:
            self._loop.__exit__()
