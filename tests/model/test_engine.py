"""The engine against a plain teacher-forced forward pass, and against itself in other batches."""

from __future__ import annotations

from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
    OPTConfig,
    Phi3Config,
    Phi3ForCausalLM,
)
from transformers.generation.logits_process import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from spikescore.errors import UserError
from spikescore.model import engine as engine_module
from spikescore.model.architecture import longest_context
from spikescore.model.engine import Engine
from spikescore.model.memory import PASS_TOKENS
from spikescore.model.reading import read_turns
from spikescore.model.sampling import DraftTable, Sampling, choose_tokens, turn_uniforms
from spikescore.model.slots import SlotModel, require_packable
from spikescore.model.turns import Limits, Turn, common_prefix
from spikescore.pairs import TOKEN_KEYS
from tests.helpers.models import SHAPE, make_model
from tests.helpers.oracles import states_at

STOP_IDS = [2, 3, 4]


class Script:
    """A conversation of 3 to 5 turns over random ids, a fixed function of its number.

    With `rewrite` each prompt drops half of the answer before it, as templates that strip an
    earlier thinking block do.
    """

    def __init__(self, number: int, rewrite: bool = False) -> None:
        rng = np.random.default_rng(number)
        self.item_id = f"q{number}"
        self.number = number
        self.rewrite = rewrite
        self.first = rng.integers(5, 110, rng.integers(3, 40)).tolist()
        self.n_turns = int(rng.integers(3, 6))

    def next_prompt(self, last: Turn | None) -> list[int] | None:
        if last is None:
            return self.first
        if last.number == self.n_turns:
            return None
        rng = np.random.default_rng([last.number, self.number])
        kept = last.answer_ids[len(last.answer_ids) // 2 :] if self.rewrite else last.answer_ids
        return last.prompt_ids + kept + [2] + rng.integers(5, 110, rng.integers(2, 9)).tolist()


def run(model, batch_size, numbers, *, rewrite=False, sampling=None, limits=None):
    engine = Engine(
        model,
        stop_ids=STOP_IDS,
        sampling=sampling or Sampling(temperature=1.0, top_p=0.9, seed=7),
        limits=limits or Limits(max_new_tokens=12, max_context=600),
        batch_size=batch_size,
    )
    finished = {f.conversation.item_id: f for f in engine.run(Script(n, rewrite) for n in numbers)}
    assert not [f.error for f in finished.values() if f.error]
    return finished, engine


@pytest.mark.parametrize(
    ("seconds", "ticks", "sizes"),
    [(60.0, 0, [1, 8, 64, 100]), (60.0, 9, [1, 8]), (None, 9, [100])],
)
def test_the_time_of_a_turn_is_that_of_the_whole_batch(seconds, ticks, sizes, monkeypatch):
    """A pass over the prompts takes 8 s here, and one for b new tokens 1 + b."""
    limits = Limits(max_new_tokens=12, max_context=600, item_seconds=seconds)
    engine = Engine(
        make_model("llama"), stop_ids=STOP_IDS, sampling=Sampling(1.0, 0.9, 7), limits=limits,
        batch_size=100,
    )  # fmt: skip
    timed, clock = [], count(step=ticks)

    def taken(size, held, prompt, n_tokens):
        assert (held, prompt) == (40, 20)
        timed.append(size)
        return 8.0 + (n_tokens - 1) * (1 + size)

    monkeypatch.setattr(engine, "_time_trial", taken)
    own = SimpleNamespace(monotonic=lambda: next(clock))
    monkeypatch.setattr(engine_module, "time", own)
    expected = (8 + 4 * 101) / 100
    assert engine.seconds_per_turn(held=40, prompt=20, answer=5) == pytest.approx(expected)
    assert timed == [size for size in sizes for _ in range(2)]
    monkeypatch.undo()
    fed, feed = [], SlotModel.feed
    monkeypatch.setattr(
        SlotModel, "feed", lambda *args, **options: fed.append(args[1]) or feed(*args, **options)
    )
    assert engine.seconds_per_turn(held=40, prompt=20, answer=5) > 0
    assert {(part.first, len(part.ids)) for part in fed[0]} == {(40, 20)}  # no more is encoded


def assert_same(one: Turn, two: Turn) -> None:
    """What is equal whatever the batch, the order, drafts or a restart: ids, and figures nearly."""
    assert (one.answer_ids, one.finish_reason) == (two.answer_ids, two.finish_reason)
    assert one.logprobs == pytest.approx(two.logprobs, abs=1e-4)
    assert one.entropies == pytest.approx(two.entropies, abs=1e-4)
    for key in TOKEN_KEYS:
        np.testing.assert_allclose(one.states[key], two.states[key], rtol=4e-3, atol=4e-3)


def assert_states_equal_a_plain_pass(model, turn: Turn) -> None:
    """Each of the three states against a teacher-forced forward pass over the turn's ids."""
    ids = turn.prompt_ids + turn.answer_ids
    last, before = len(ids) - 1, len(turn.prompt_ids) - 1
    second = last - 1 if len(turn.answer_ids) > 1 else last
    oracle = states_at(model, ids, [last, second, before], dtype=torch.float32)
    for key, expected in zip(TOKEN_KEYS, oracle, strict=True):
        # what FP16 rounding of the same number may differ by, plus float32 noise
        allowed = np.abs(expected) * 2.0**-11 + 1e-4 * np.linalg.norm(
            expected, axis=1, keepdims=True
        )
        assert turn.states[key].dtype == np.float16
        assert (np.abs(turn.states[key] - expected) <= allowed).all()


@pytest.mark.parametrize("kind", ["llama", "qwen3", "mistral", "gemma2"])
@pytest.mark.parametrize("rewrite", [False, True])
def test_states_equal_a_teacher_forced_pass(kind, rewrite):
    model = make_model(kind)
    finished, _ = run(model, 32, range(40), rewrite=rewrite)
    reasons = set()
    for dialogue in finished.values():
        for turn in dialogue.turns:
            reasons.add(turn.finish_reason if turn.answer_ids else "empty")
            assert_states_equal_a_plain_pass(model, turn)
    assert {"stop", "length"} <= reasons


class Given(Script):
    """One whose first answer is given: of 1 to 30 tokens, stop tokens among them."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        rng = np.random.default_rng([9, number])
        self.given = rng.integers(2, 110, rng.integers(1, 31)).tolist()


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_a_given_answer_is_read_as_a_plain_pass_reads_it(kind, monkeypatch):
    monkeypatch.setattr("spikescore.model.engine.GIVEN_TOKENS", 40)  # not all fit into one pass
    model = make_model(kind)
    engine = Engine(
        model, stop_ids=STOP_IDS, sampling=Sampling(1.0, 0.9, seed=7),
        limits=Limits(max_new_tokens=12, max_context=600), batch_size=8,
    )  # fmt: skip
    script = [Given(number) for number in range(20)]
    for dialogue in engine.run([*script, *(Script(number) for number in range(20, 24))]):
        first, second = dialogue.turns[:2]
        if isinstance(dialogue.conversation, Given):
            assert (first.answer_ids, first.finish_reason) == (dialogue.conversation.given, "stop")
        assert second.prompt_ids[: len(first.prompt) + len(first.answer_ids)] == [
            *first.prompt_ids, *first.answer_ids,
        ]  # fmt: skip
        for turn in (first, second):
            assert_states_equal_a_plain_pass(model, turn)
            ids = torch.tensor([turn.prompt_ids + turn.answer_ids])
            with torch.no_grad():
                said = model(ids).logits[0, len(turn.prompt) - 1 : -1].log_softmax(-1)
            chosen = said.gather(1, torch.tensor(turn.answer_ids, dtype=torch.long)[:, None])
            assert turn.logprobs == pytest.approx(chosen[:, 0].tolist(), abs=1e-4)
            entropies = -(said.exp() * said).sum(-1)
            assert turn.entropies == pytest.approx(entropies.tolist(), abs=1e-4)
            if turn.answer_ids:
                assert turn.first_token_confidence == pytest.approx(float(said[0].exp().max()))
    assert engine.stats["turns"] == sum(one.n_turns for one in script) + sum(
        Script(number).n_turns for number in range(20, 24)
    )


def test_a_given_answer_that_does_not_fit_is_an_error_of_its_own():
    model = make_model("llama")
    script = [Given(number) for number in range(6)]
    script[3].given = [7] * 80
    engine = Engine(
        model, stop_ids=STOP_IDS, sampling=Sampling(1.0, 0.9, seed=7),
        limits=Limits(max_new_tokens=12, max_context=80, item_seconds=1e-9), batch_size=4,
    )  # fmt: skip
    ended = {one.conversation.number: one for one in engine.run(script)}
    n = len(script[3].first)
    expected = f"the first prompt has {n} tokens and the given answer 80; the context allows 80"
    assert ended[3].error == expected and not ended[3].turns
    for number in (0, 1, 2, 4, 5):  # which a time limit does not cut
        assert ended[number].turns[0].answer_ids == script[number].given
        assert ended[number].error is None


@pytest.mark.parametrize("rewrite", [False, True])
def test_any_batch_gives_the_same_dialogues(rewrite):
    model = make_model("llama")
    reference, engine = run(model, 16, range(24), rewrite=rewrite)
    assert engine.stats["reused_tokens"] > engine.stats["encoded_tokens"]
    for batch_size, numbers in [(1, range(8)), (7, range(24)), (16, reversed(range(24)))]:
        other, _ = run(model, batch_size, numbers, rewrite=rewrite)
        for item_id, dialogue in other.items():
            assert len(dialogue.turns) == len(reference[item_id].turns)
            for one, two in zip(dialogue.turns, reference[item_id].turns, strict=True):
                assert_same(one, two)


def test_greedy_equals_transformers_generate():
    model = make_model("llama")
    finished, _ = run(model, 8, range(8), sampling=Sampling(temperature=0, top_p=1, seed=0))
    for dialogue in finished.values():
        for turn in dialogue.turns:
            output = model.generate(
                torch.tensor([turn.prompt_ids]),
                max_new_tokens=12,
                do_sample=False,
                eos_token_id=STOP_IDS,
                pad_token_id=0,
            )[0].tolist()
            expected = output[len(turn.prompt_ids) :]
            if expected[-1] in STOP_IDS:
                expected = expected[:-1]
            assert turn.answer_ids == expected


def test_log_probabilities_are_raw():
    model = make_model("llama")
    cold = Sampling(temperature=0.2, top_p=0.7, seed=1)
    finished, _ = run(model, 8, range(4), sampling=cold)
    for dialogue in finished.values():
        for turn in dialogue.turns:
            if not turn.answer_ids:
                continue
            ids = torch.tensor([turn.prompt_ids + turn.answer_ids])
            with torch.no_grad():
                raw = torch.log_softmax(model(ids).logits[0].double(), dim=-1)
            at = torch.arange(len(turn.prompt_ids) - 1, ids.shape[1] - 1)
            expected = raw[at, ids[0, at + 1]]
            assert turn.logprobs == pytest.approx(expected.tolist(), abs=1e-4)
            assert turn.perplexity == pytest.approx(float(torch.exp(-expected.mean())), rel=1e-3)
            entropy = -(raw[at].exp() * raw[at]).sum(-1)
            assert turn.entropies == pytest.approx(entropy.tolist(), abs=1e-3)
            top = float(raw[at[0]].exp().max())
            assert turn.first_token_confidence == pytest.approx(top, rel=1e-3)


@pytest.mark.parametrize("top_p", [0.05, 0.3, 0.7, 0.95, 1.0])
@pytest.mark.parametrize("sharp", [0.3, 5.0])
def test_nucleus_and_frequencies_are_those_of_transformers(top_p, sharp):
    torch.manual_seed(3)
    logits = torch.randn(6, 300) * sharp
    warpers = LogitsProcessorList([TemperatureLogitsWarper(0.8), TopPLogitsWarper(top_p)])
    expected = torch.softmax(warpers(None, logits.clone()), dim=-1)
    n = 4000
    grid = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    sampling = Sampling(0.8, top_p, 0)
    for row in range(6):
        drawn = choose_tokens(logits[row].expand(n, -1), grid, sampling)
        frequency = torch.bincount(drawn, minlength=300) / n
        # a uniform grid through an inverse CDF reproduces each probability within one step
        assert (frequency - expected[row]).abs().max() <= 1.5 / n
        assert set(drawn.tolist()) <= set(expected[row].nonzero()[:, 0].tolist())


def test_uniforms_depend_on_names_only():
    sampling = Sampling(0.2, 0.7, 42)
    one = turn_uniforms(sampling, "a", 3, 50)
    assert np.array_equal(one[:10], turn_uniforms(sampling, "a", 3, 10))
    assert not np.array_equal(one, turn_uniforms(sampling, "a", 4, 50))
    assert not np.array_equal(one, turn_uniforms(Sampling(0.2, 0.7, 43), "a", 3, 50))
    assert 0 <= one.min() and one.max() < 1


def test_long_prompts_are_encoded_in_parts(monkeypatch):
    monkeypatch.setitem(PASS_TOKENS, "cpu", 48)
    model = make_model("mistral")
    monkeypatch.setattr(Script, "next_prompt", lambda self, last: None if last else [7, 8, 9] * 70)
    finished, _ = run(model, 4, range(3))
    turn = finished["q0"].turns[0]
    ids = turn.prompt_ids + turn.answer_ids
    oracle = states_at(model, ids, [len(turn.prompt_ids) - 1], dtype=torch.float32, chunk=7)[0]
    assert np.abs(turn.states[TOKEN_KEYS[2]] - oracle).max() < 5e-3


def test_context_budget_ends_the_dialogue():
    model = make_model("llama")
    finished, _ = run(model, 4, [1], limits=Limits(max_new_tokens=12, max_context=60))
    dialogue = finished["q1"]
    assert dialogue.reason == "context"
    assert 1 <= len(dialogue.turns) < Script(1).n_turns
    for turn in dialogue.turns:
        assert len(turn.prompt_ids) + len(turn.answer_ids) <= 60
        assert turn.finish_reason == "stop" or len(turn.answer_ids) == 12  # no stump is kept


def test_a_prompt_beyond_the_context_is_an_error_of_that_item_alone():
    model = make_model("llama")
    engine = Engine(
        model,
        stop_ids=STOP_IDS,
        sampling=Sampling(1, 0.9, 7),
        limits=Limits(max_new_tokens=4, max_context=30),
        batch_size=4,
    )
    finished = {f.conversation.item_id: f for f in engine.run(Script(n) for n in range(12))}
    assert len(finished) == 12
    for number in range(12):
        dialogue, first = finished[f"q{number}"], len(Script(number).first)
        if first + 1 > 30:
            assert f"has {first} tokens; the context allows 30" in dialogue.error
        elif first + 4 <= 30:  # all that an answer may have fits
            assert dialogue.error is None
        else:
            assert dialogue.error is None or "no end yet" in dialogue.error


@pytest.mark.parametrize(("batch_size", "ends"), [(1, True), (8, False)])
def test_a_dialogue_is_charged_its_share_of_each_pass(batch_size, ends, monkeypatch):
    """Passes of one second each: alone, two tokens in turn one end it; beside others, none."""
    monkeypatch.setattr("spikescore.model.turns.Stopwatch.seconds", lambda self: 1.0)
    prompt = [7, 8, 9, 10, 11]
    monkeypatch.setattr(Script, "next_prompt", lambda self, last: None if last else prompt)
    limits = Limits(max_new_tokens=9, max_context=600, item_seconds=1.5)
    finished, _ = run(make_model("llama"), batch_size, range(8), limits=limits)
    answers = [dialogue.turns[0] for dialogue in finished.values()]
    assert {dialogue.reason for dialogue in finished.values()} == {
        "timeout" if ends else "complete"
    }
    assert all(len(turn.answer_ids) < 9 for turn in answers) or not ends
    total = sum(turn.seconds for turn in answers)
    assert total == pytest.approx(round(total)) and total > 1  # each pass was paid for, once


def test_timeout_keeps_what_was_generated_and_its_states():
    model = make_model("llama")
    limits = Limits(max_new_tokens=12, max_context=600, item_seconds=0.0)
    finished, _ = run(model, 4, range(6), limits=limits)
    for dialogue in finished.values():
        turn = dialogue.turns[-1]
        if turn.finish_reason != "timeout":  # it stopped by itself at its very first token
            continue
        assert dialogue.reason == "timeout" and len(turn.answer_ids) == 1
        oracle = states_at(model, turn.prompt_ids + turn.answer_ids, [len(turn.prompt_ids)])[0]
        assert np.allclose(turn.states[TOKEN_KEYS[0]], oracle, atol=5e-3)
    assert any(d.reason == "timeout" for d in finished.values())


def test_out_of_memory_halves_the_batch_and_redoes_the_turn(monkeypatch, caplog):
    model = make_model("llama")
    reference, _ = run(model, 32, range(20))
    true_forward = model.forward
    calls = {"n": 0}

    def failing(*args, **kwargs):
        calls["n"] += 1
        if calls["n"] in (9, 30):
            raise torch.OutOfMemoryError("made up")
        return true_forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", failing)
    finished, engine = run(model, 32, range(20))
    assert engine.batch_size == 8
    assert "batch size 16" in caplog.text
    for item_id, dialogue in reference.items():
        ours = [turn.answer_ids for turn in finished[item_id].turns]
        assert ours == [turn.answer_ids for turn in dialogue.turns]


def test_out_of_memory_with_one_dialogue_is_an_error(monkeypatch):
    model = make_model("llama")

    def failing(*args, **kwargs):
        raise torch.OutOfMemoryError("made up")

    monkeypatch.setattr(model, "forward", failing)
    with pytest.raises(UserError, match="max_new_tokens"):
        run(model, 1, range(2))


def test_common_prefix():
    assert common_prefix([], [1]) == 0
    assert common_prefix([1, 2, 3], [1, 2]) == 2
    assert common_prefix([1, 2, 3], [1, 5, 3]) == 1


def test_processors_of_the_generation_config_equal_transformers():
    model = make_model("llama")
    processors = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(1.7), TopKLogitsWarper(5)])
    greedy = Sampling(temperature=0, top_p=1, seed=0, processors=processors)
    finished, _ = run(model, 4, range(4), sampling=greedy)
    plain, _ = run(model, 4, range(4), sampling=Sampling(temperature=0, top_p=1, seed=0))
    differs = False
    for item_id, dialogue in finished.items():
        for turn in dialogue.turns:
            output = model.generate(
                torch.tensor([turn.prompt_ids]),
                max_new_tokens=12,
                do_sample=False,
                repetition_penalty=1.7,
                eos_token_id=STOP_IDS,
                pad_token_id=0,
            )[0].tolist()
            expected = output[len(turn.prompt_ids) :]
            assert turn.answer_ids == (expected[:-1] if expected[-1] in STOP_IDS else expected)
        differs |= dialogue.turns[0].answer_ids != plain[item_id].turns[0].answer_ids
    assert differs


def test_guesses_change_how_fast_an_answer_comes_and_nothing_else():
    model = make_model("llama")
    reference = None
    for draft_tokens in (0, 3, 6):
        engine = Engine(
            model,
            stop_ids=STOP_IDS,
            sampling=Sampling(temperature=0.01, top_p=0.9, seed=7),  # runs in circles
            limits=Limits(max_new_tokens=40, max_context=600),
            batch_size=8,
            draft_tokens=draft_tokens,
        )
        finished = {f.conversation.item_id: f.turns for f in engine.run(map(Script, range(16)))}
        if reference is None:
            reference = finished
            assert engine.stats["advances"] >= engine.stats["new_tokens"]
            continue
        assert engine.stats["advances"] < 0.9 * engine.stats["new_tokens"]
        for item_id, turns in reference.items():
            for one, two in zip(turns, finished[item_id], strict=True):
                assert_same(one, two)


def test_states_are_right_where_an_answer_ends_on_a_guess():
    model = make_model("llama")
    limits = Limits(max_new_tokens=9, max_context=600)
    cold = Sampling(temperature=0, top_p=1, seed=0)  # greedy random weights soon run in circles
    finished, engine = run(model, 8, range(12), sampling=cold, limits=limits)
    assert engine.stats["advances"] < engine.stats["new_tokens"]
    for dialogue in finished.values():
        for turn in dialogue.turns:
            assert_states_equal_a_plain_pass(model, turn)


def test_a_draft_follows_the_longest_known_context():
    drafts = DraftTable(stop_ids={9})
    drafts.learn([1, 2, 3, 4, 5, 6, 7], 0)
    drafts.learn([8, 4, 5, 2, 9], 0)
    assert drafts.guess([3, 4, 5], 2) == [6, 7]  # three tokens of context go before two
    assert drafts.guess([0, 4, 5], 4) == [2]  # then an end is expected
    assert drafts.guess([1, 1], 3) == []
    assert drafts.guess([], 3) == []


def test_other_attention_is_refused():
    model = make_model("llama")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(UserError, match='"sdpa"'):
        run(model, 1, range(1))


class Sample:
    """One answer to a prompt of a common beginning and a question, at a temperature of its own."""

    def __init__(self, question: int, number: int) -> None:
        self.item_id = f"q{question}#{number}"
        self.sampling = Sampling(0.1 if number == 0 else 1.0, 0.9, 3)
        few_shot = np.random.default_rng(0).integers(5, 110, 150).tolist()
        asked = np.random.default_rng([1, question]).integers(5, 110, 90 + question).tolist()
        self.prompt = few_shot + asked

    def next_prompt(self, last: Turn | None) -> list[int] | None:
        return self.prompt if last is None else None


@pytest.mark.parametrize("batch_size", [1, 3, 40])
def test_a_common_beginning_is_encoded_once_and_changes_nothing(batch_size, monkeypatch):
    model = make_model("llama")
    samples = [Sample(question, number) for question in range(4) for number in range(6)]
    results = {}
    for shared_tokens in (64, 10**9):
        monkeypatch.setattr("spikescore.model.engine.SHARED_TOKENS", shared_tokens)
        engine = Engine(
            model,
            stop_ids=STOP_IDS,
            sampling=Sampling(0, 1, 0),
            limits=Limits(max_new_tokens=12, max_context=600),
            batch_size=batch_size,
        )
        results[shared_tokens] = {f.conversation.item_id: f for f in engine.run(samples)}
        if shared_tokens == 64:
            distinct = 150 + sum(90 + question for question in range(4))
            # all samples of a question but the first feed the prompt's last token again
            assert engine.stats["encoded_tokens"] == distinct + len(samples) - 4
            total = sum(len(sample.prompt) for sample in samples)
            assert engine.stats["encoded_tokens"] + engine.stats["reused_tokens"] == total
    for item_id, one in results[64].items():
        assert_same(one.turns[0], results[10**9][item_id].turns[0])
    texts = {tuple(results[64][f"q0#{number}"].turns[0].answer_ids) for number in range(6)}
    assert len(texts) > 1


@pytest.mark.parametrize("batch_size", [2, 40])
def test_samples_of_a_short_prompt_come_from_one_encoding(batch_size):
    """A question by itself, without examples, is a few dozen tokens."""
    samples = [Sample(question, number) for question in range(3) for number in range(5)]
    for sample in samples:
        sample.prompt = sample.prompt[150:190]
    engine = Engine(
        make_model("llama"),
        stop_ids=STOP_IDS,
        sampling=Sampling(0, 1, 0),
        limits=Limits(max_new_tokens=4, max_context=600),
        batch_size=batch_size,
    )
    assert len({f.conversation.item_id for f in engine.run(samples) if not f.error}) == 15
    # all samples of a question but the first feed the prompt's last token again
    assert engine.stats["encoded_tokens"] == 3 * 40 + 15 - 3


def plain_state(model, ids) -> np.ndarray:
    """The state of the last of these ids in a pass over them alone: `[L + 1, H]`."""
    with torch.no_grad():
        passed = model.get_decoder()(torch.tensor([ids]), output_hidden_states=True)
    return torch.stack([state[0, -1] for state in passed.hidden_states]).numpy()


@pytest.mark.parametrize("batch_size", [1, 5])
def test_rotations_that_ask_for_a_length_are_those_of_each_dialogue(batch_size):
    """LongRoPE: each state is that of a pass over the ids up to it, before the length at which
    positions are turned otherwise, across it and beyond, whatever runs beside it.
    """
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 50}
    rope |= {"short_factor": [1.0] * 8, "long_factor": [2.0 + n for n in range(8)]}
    shape = {key: value for key, value in SHAPE.items() if key != "head_dim"}
    torch.manual_seed(0)
    model = Phi3ForCausalLM(
        Phi3Config(
            **shape, pad_token_id=0, rope_parameters=rope, original_max_position_embeddings=50
        )
    ).eval()
    finished, _ = run(model, batch_size, range(8))
    crossed = set()
    for dialogue in finished.values():
        again = [
            Turn(turn.number, turn.prompt, answer_ids=turn.answer_ids) for turn in dialogue.turns
        ]
        read_turns(model, again)
        for turn, read in zip(dialogue.turns, again, strict=True):
            prompt, whole = turn.prompt_ids, turn.prompt_ids + turn.answer_ids
            crossed.add((len(prompt) > 50, len(whole) > 50))
            second = whole[:-1] if len(turn.answer_ids) > 1 else whole
            for key, ids in zip(TOKEN_KEYS, (whole, second, prompt), strict=True):
                expected = plain_state(model, ids)
                for states in (turn.states, read.states):
                    np.testing.assert_allclose(states[key], expected, rtol=4e-3, atol=4e-3)
            assert read.logprobs == pytest.approx(turn.logprobs, abs=1e-4)
    assert crossed == {(False, False), (False, True), (True, True)}


def test_a_dynamic_rotation_is_held_to_its_own_length():
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    assert longest_context(LlamaConfig(max_position_embeddings=700, rope_parameters=rope)) == 700
    rope["original_max_position_embeddings"] = 300
    assert longest_context(LlamaConfig(max_position_embeddings=700, rope_parameters=rope)) == 300
    assert longest_context(GPT2Config(n_positions=90)) == 90


def test_a_state_that_no_file_can_hold_ends_the_dialogue_at_once():
    model = make_model("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(1e9)
    engine = Engine(
        model,
        stop_ids=STOP_IDS,
        sampling=Sampling(0, 1, 0),
        limits=Limits(max_new_tokens=12, max_context=600),
        batch_size=3,
    )
    finished = list(engine.run(map(Script, range(3))))
    assert engine.stats["passes"] == 1 and len(finished) == 3
    for dialogue in finished:
        assert "turn 1: the state of layer 0 has values beyond 65504" in dialogue.error
        assert "float32" not in dialogue.error


def test_a_run_goes_on_after_turns_of_an_earlier_one():
    model = make_model("llama")
    reference, _ = run(model, 4, range(6))
    conversations = []
    for number in range(6):
        script, turns = Script(number), reference[f"q{number}"].turns
        script.turns = [
            Turn(turn.number, turn.prompt, answer_ids=turn.answer_ids) for turn in turns[:2]
        ]
        conversations.append(script)
    engine = Engine(
        model,
        stop_ids=STOP_IDS,
        sampling=Sampling(temperature=1.0, top_p=0.9, seed=7),
        limits=Limits(max_new_tokens=12, max_context=600),
        batch_size=3,
    )
    for dialogue in engine.run(conversations):
        turns = reference[dialogue.conversation.item_id].turns
        read_turns(model, dialogue.turns[:2])
        for one, two in zip(dialogue.turns, turns, strict=True):
            assert one.answer_ids == two.answer_ids
            assert one.logprobs == pytest.approx(two.logprobs, abs=1e-4)
            for key in TOKEN_KEYS:
                np.testing.assert_allclose(one.states[key], two.states[key], rtol=4e-3, atol=4e-3)


TINY = {"vocab_size": 120, "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4}


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (GPT2Config(vocab_size=120, n_embd=32, n_layer=2, n_head=4), ""),
        (OPTConfig(**TINY, ffn_dim=48, word_embed_proj_dim=32), ""),
        (GPTNeoXConfig(**TINY, intermediate_size=48), ""),
        (BloomConfig(vocab_size=120, hidden_size=32, n_layer=2, n_head=4), "bloom"),
        (MambaConfig(vocab_size=120, hidden_size=32, num_hidden_layers=2), "mamba"),
        (OPTConfig(**TINY, ffn_dim=48, word_embed_proj_dim=16), "opt"),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_any_architecture_runs_or_is_refused_by_name(config, says):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    if says:
        with pytest.raises(UserError, match=says):
            require_packable(model)
        return
    require_packable(model)
    finished, _ = run(model, 3, range(4))
    for dialogue in finished.values():
        for turn in dialogue.turns:
            expected = plain_state(model, turn.prompt_ids)
            np.testing.assert_allclose(turn.states[TOKEN_KEYS[2]], expected, rtol=4e-3, atol=4e-3)


def test_a_mask_of_its_own_is_found_by_the_trial(monkeypatch):
    """A model that pays attention otherwise than by position is not read wrongly."""
    model = make_model("llama")
    monkeypatch.setattr(
        "spikescore.model.attention._mask",
        lambda positions, view, window, dtype: torch.zeros(*positions.shape, view)[:, None],
    )
    with pytest.raises(UserError, match="not those of a plain pass"):
        require_packable(model)
