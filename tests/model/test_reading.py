"""Dialogues known as text: what is read against a plain forward pass, and against the engine."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from spikescore.data.question import Question
from spikescore.dialogues.config import Config
from spikescore.dialogues.dialogue import Dialogue, dialogue_record, stop_late
from spikescore.dialogues.recorded import recorded_dialogue, shipped_dialogue
from spikescore.errors import UserError
from spikescore.model import reading
from spikescore.model.chat import ChatFormat
from spikescore.model.engine import Engine
from spikescore.model.reading import Exchange, Transcript, encode_transcript, read_transcripts
from spikescore.model.sampling import Sampling
from spikescore.model.turns import Finished, Limits, Turn
from spikescore.pairs import TOKEN_KEYS
from tests.helpers import models
from tests.helpers.running import CHAT_TEMPLATE, make_tokenizer
from tests.model.test_engine import assert_states_equal_a_plain_pass

# earlier answers are cut to four letters, as templates that strip thinking blocks rewrite them
REWRITING = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}> "
    "{% if m['role'] == 'assistant' and not loop.last %}{{ m['content'][:4] }}"
    "{% else %}{{ m['content'] }}{% endif %}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
ANSWERS = ["the passage answers it", "", "and", "the question of the answer", "no. No, never!"]


def make_model(kind: str):
    return models.make_model(kind, vocab_size=len(make_tokenizer()), seed=1)


def make_chat(template=CHAT_TEMPLATE) -> ChatFormat:
    return ChatFormat(make_tokenizer(chat_template=template), enable_thinking=False)


def make_exchanges(answers=ANSWERS) -> list[Exchange]:
    messages = [{"role": "system", "content": "Be brief."}]
    exchanges = []
    for number, answer in enumerate(answers):
        messages = [*messages, {"role": "user", "content": f"What is the question {number}?"}]
        exchanges.append(Exchange(messages, answer))
        messages = [*messages, {"role": "assistant", "content": answer}]
    return exchanges


def assert_equal_to_a_plain_pass(model, turn: Turn) -> None:
    ids = turn.prompt_ids + turn.answer_ids
    last, before = len(ids) - 1, len(turn.prompt_ids) - 1
    assert_states_equal_a_plain_pass(model, turn)
    with torch.no_grad():
        raw = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), dim=-1)
    assert turn.first_token_confidence == pytest.approx(float(raw[before].exp().max()), rel=1e-3)
    at = torch.arange(before, last)
    expected = raw[at, torch.tensor(turn.answer_ids, dtype=torch.long)]
    assert turn.logprobs == pytest.approx(expected.tolist(), abs=1e-4)
    entropy = -(raw[at].exp() * raw[at]).sum(-1)
    assert turn.entropies == pytest.approx(entropy.tolist(), abs=1e-3)
    if turn.answer_ids:
        assert turn.perplexity == pytest.approx(float(torch.exp(-expected.mean())), rel=1e-3)
    else:
        assert turn.perplexity is None


@pytest.mark.parametrize("kind", ["llama", "qwen3", "mistral", "gemma2"])
@pytest.mark.parametrize("template", [CHAT_TEMPLATE, REWRITING])
@pytest.mark.parametrize("chunk", [7, 512])
def test_what_is_read_equals_a_plain_forward_pass(kind, template, chunk, monkeypatch):
    monkeypatch.setattr(reading, "TEACHER_CHUNK", chunk)
    model, chat, exchanges = make_model(kind), make_chat(template), make_exchanges()
    turns = encode_transcript(model, chat, exchanges)
    assert [turn.number for turn in turns] == [1, 2, 3, 4, 5]
    for turn, exchange in zip(turns, exchanges, strict=True):
        shown = chat.tokenizer.apply_chat_template(
            exchange.messages, add_generation_prompt=True, tokenize=False
        )
        assert chat.tokenizer.decode(turn.prompt_ids) == shown
        assert chat.tokenizer.decode(turn.answer_ids).strip() == exchange.answer
        assert_equal_to_a_plain_pass(model, turn)


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, REWRITING])
def test_passes_are_bounded_and_nothing_is_encoded_twice(monkeypatch, template):
    model, chat = make_model("llama"), make_chat(template)
    true_forward, passes = model.forward, []

    def watching(**arguments):
        output = true_forward(**arguments)
        passes.append((arguments["input_ids"].shape[1], output.logits.shape[1]))
        return output

    monkeypatch.setattr(model, "forward", watching)
    monkeypatch.setattr(reading, "TEACHER_CHUNK", 32)
    turns = encode_transcript(model, chat, make_exchanges())
    assert all(width <= 32 and logits <= 32 for width, logits in passes)
    encoded = sum(width for width, _ in passes)
    whole = len(turns[-1].prompt_ids + turns[-1].answer_ids)
    if template == CHAT_TEMPLATE:
        assert encoded < whole + 16  # padding of the last pass
    else:
        again = sum(len(turn.prompt_ids) + len(turn.answer_ids) for turn in turns)
        assert whole < encoded < again * 0.7


def test_an_answer_gets_the_ids_that_the_template_gives_it():
    # the template puts a space before each answer, so the first token is " and", not "and"
    chat, exchanges = make_chat(), make_exchanges(["and the answer", "of the passage"])
    first = chat.answer_ids(exchanges[0].messages, "and the answer")
    assert chat.tokenizer.decode(first) == " and the answer"
    assert first != chat.tokenizer("and the answer", add_special_tokens=False)["input_ids"]
    following = chat.render(exchanges[1].messages)
    prompt = chat.render(exchanges[0].messages)
    assert following[: len(prompt + first)] == prompt + first
    assert following[len(prompt + first)] == chat.tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("template", "shown"),
    [
        (None, " and"),  # the plain format: "Assistant: and"
        # a thinking switch that opens and closes an empty thought before the answer
        (
            "{% for m in messages %}[{{ m['role'] }}]"
            "{% if m['role'] == 'assistant' %}(){% endif %}{{ m['content'] }}{{ eos_token }}"
            "{% endfor %}{% if add_generation_prompt %}[assistant](){% endif %}",
            "and",
        ),
        # text of the template's own closes the answer
        (
            "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }} over.{% endfor %}"
            "{% if add_generation_prompt %}[assistant]{% endif %}",
            "and",
        ),
        # the closed conversation does not begin with the prompt
        (
            "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{{ eos_token }}{% endfor %}"
            "{% if add_generation_prompt %}[now you]{% endif %}",
            "and",
        ),
    ],
)
def test_templates_of_other_kinds_give_the_answers_own_ids(template, shown):
    chat = make_chat(template)
    messages = [{"role": "user", "content": "What?"}]
    assert chat.tokenizer.decode(chat.answer_ids(messages, "and")) == shown
    assert chat.answer_ids(messages, "") == []


def test_a_transcript_beyond_the_context_keeps_the_turns_that_fit():
    model, chat, exchanges = make_model("llama"), make_chat(), make_exchanges()
    lengths = [
        len(turn.prompt_ids) + len(turn.answer_ids)
        for turn in encode_transcript(model, chat, exchanges)
    ]
    assert lengths == sorted(lengths)
    transcripts = [Transcript("a", exchanges, "complete") for _ in range(2)]
    whole, cut, none = (
        next(read_transcripts(transcripts, model, chat, max_context=limit))
        for limit in (lengths[4], lengths[3], lengths[0] - 1)
    )
    assert (whole.reason, len(whole.turns), whole.error) == ("complete", 5, None)
    assert (cut.reason, len(cut.turns), cut.error) == ("context", 4, None)
    assert "context" in none.error and not none.turns


def test_an_error_passes_through_and_the_others_are_read():
    model, chat = make_model("llama"), make_chat()
    transcripts = [
        Transcript("a", [], "complete", "turn 1: the server refused it"),
        Transcript("b", make_exchanges(["the"]), "timeout"),
    ]
    failed, read = read_transcripts(transcripts, model, chat, max_context=500)
    assert failed.error == "turn 1: the server refused it" and not failed.turns
    assert read.error is None and read.reason == "timeout" and len(read.turns) == 1


# --- records ----------------------------------------------------------------------------------

QUESTION = Question(
    id="x", domain="d", question="How many?", context="The passage.", gold_answers=("seven",)
)


def held_by_the_engine(model, chat, config) -> dict:
    engine = Engine(
        model,
        stop_ids=[chat.tokenizer.eos_token_id],
        sampling=Sampling(1.0, 1.0, 3),
        limits=Limits(config.max_new_tokens, 2000),
        batch_size=1,
    )
    (finished,) = engine.run([Dialogue(QUESTION, config, chat)])
    record = dialogue_record(finished, finished.conversation, config, chat)
    return finished, record


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, REWRITING])
@pytest.mark.parametrize(
    "settings", [{}, {"history": "question_only"}, {"schedule": "forked"}], ids=str
)
def test_reading_an_engines_dialogue_again_gives_its_turns(template, settings):
    model, chat = make_model("qwen3"), make_chat(template)
    config = Config(max_steps=5, max_new_tokens=9, **settings)
    finished, record = held_by_the_engine(model, chat, config)
    other = Config(system_prompt="Another one.")  # the record's own configuration counts
    held, exchanges = recorded_dialogue(record, other, chat)
    assert held.answers == [step["response"] for step in record["cot_steps"]]
    turns = encode_transcript(model, chat, exchanges)
    assert len(turns) == len(finished.turns) == 5
    for ours, theirs in zip(turns, finished.turns, strict=True):
        assert ours.prompt_ids == theirs.prompt_ids and ours.answer_ids == theirs.answer_ids
        assert ours.finish_reason == theirs.finish_reason
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)
        assert ours.entropies == pytest.approx(theirs.entropies, abs=1e-4)
        assert ours.first_token_confidence == pytest.approx(theirs.first_token_confidence, abs=1e-4)
        for key in TOKEN_KEYS:
            one, two = ours.states[key].astype(float), theirs.states[key].astype(float)
            assert (np.abs(one - two) <= np.abs(two) * 2.0**-10 + 1e-4).all()


def test_a_dialogue_read_in_part_says_why_it_ended():
    model, chat, config = make_model("llama"), make_chat(), Config(max_steps=3, max_new_tokens=5)
    _, record = held_by_the_engine(model, chat, config)
    held, exchanges = recorded_dialogue(record, config, chat)
    lengths = [step["n_prompt_tokens"] + step["n_response_tokens"] for step in record["cot_steps"]]
    (cut,) = read_transcripts(
        [Transcript("x", exchanges, record["finish_reason"])], model, chat, max_context=lengths[1]
    )
    again = dialogue_record(cut, held, config, chat)
    assert record["finish_reason"] == "complete" and again["finish_reason"] == "context"
    kept = [step["response"] for step in again["cot_steps"]]
    assert kept == [step["response"] for step in record["cot_steps"][:2]]


def test_ids_of_another_tokenizer_are_not_taken():
    model, chat = make_model("llama"), make_chat()
    _, record = held_by_the_engine(model, chat, Config(max_steps=2, max_new_tokens=5))
    assert recorded_dialogue(record, Config(), chat)[1][0].answer_ids is not None
    for step in record["cot_steps"]:
        step["response"] = "the text"  # the stored ids do not say this
    assert recorded_dialogue(record, Config(), chat)[1][0].answer_ids is None
    record["cot_steps"][0]["response_ids"] = [10**6]
    assert recorded_dialogue(record, Config(), chat)[1][0].answer_ids is None


def test_the_older_form_is_read_where_its_texts_suffice():
    steps = [
        {"turn": 1, "response": "seven"},
        {"turn": 2, "prompt": "Are you sure?", "response": "yes"},
    ]
    record = {"id": "x", "question": "How many?", "cot_steps": steps, "legacy": True}
    held, exchanges = recorded_dialogue(record, Config(system_prompt="Be brief."), make_chat())
    assert exchanges[1].messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Question: How many?"},
        {"role": "assistant", "content": "seven"},
        {"role": "user", "content": "Are you sure?"},
    ]
    assert [prompt.family for prompt in held.prompts] == ["unknown", "unknown"]
    del steps[1]["prompt"]
    with pytest.raises(UserError, match='turn 2 holds no "prompt"'):
        recorded_dialogue(record, Config(), make_chat())
    steps[0]["response"] = None
    with pytest.raises(UserError, match='turn 1 holds no "response"'):
        recorded_dialogue(record, Config(), make_chat())


def test_a_served_dialogue_is_cut_where_high_perplexity_would_have_ended_it():
    config = Config(ppl_action="stop", ppl_bound=2.0, max_steps=4)
    # mean log-probability -0.7 is a perplexity of 2.01
    for high_turn, kept in [(2, 2), (4, 4)]:
        turns = [
            Turn(n, [1], answer_ids=[5], logprobs=[-0.7 if n == high_turn else -0.1])
            for n in (1, 2, 3, 4)
        ]
        dialogue = Dialogue(QUESTION, config, make_chat())
        finished = Finished(dialogue, turns, "complete")
        stop_late(finished, dialogue, config)
        assert len(finished.turns) == kept
        assert dialogue.stopped == ("perplexity" if high_turn == 2 else "")


# --- dialogues that a data set ships ------------------------------------------------------------

TRAJECTORY = [
    {"role": "system", "content": "Be the question."},
    {"role": "user", "content": "What is the answer?"},
    {"role": "assistant", "content": "the passage"},
    {"role": "tool", "name": "search", "content": "and of the"},
    {"role": "tool", "name": "sum", "content": "passage"},
    {"role": "assistant", "content": "the answer"},
    {"role": "assistant", "content": ""},
    {"role": "user", "content": "And?"},
    {"role": "assistant", "content": "of the question"},
]
# no tool role: it is dropped; users and assistants must take turns
STRICT = (
    "{% for m in messages %}{% if m['role'] == 'user' or m['role'] == 'assistant' %}"
    "{% if loop.index0 and messages[loop.index0 - 1]['role'] == m['role'] %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "[{{ m['role'] }}] {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def ship(messages) -> Question:
    shipped = {"messages": messages, "model": "m", "hallucinated": True, "labels": []}
    return Question("x", "d", "What is the answer?", meta={"shipped": shipped})


def test_a_shipped_dialogue_is_read_message_by_message():
    model, chat = make_model("llama"), make_chat()
    held, exchanges = shipped_dialogue(ship(TRAJECTORY))
    assert held.answers == ["the passage", "the answer", "", "of the question"]
    assert [prompt.text for prompt in held.prompts] == [
        "What is the answer?", "and of the\n\npassage", "", "And?",
    ]  # fmt: skip
    turns = encode_transcript(model, chat, exchanges)
    # what the template makes of the messages before each answer, written out by hand
    first = "<bos><system> Be the question.<end><user> What is the answer?<end><assistant>"
    second = f"{first} the passage<end><tool> and of the<end><tool> passage<end><assistant>"
    third = f"{second} the answer<end><assistant>"
    fourth = f"{third} <end><user> And?<end><assistant>"
    assert [chat.tokenizer.decode(turn.prompt_ids) for turn in turns] == [
        first, second, third, fourth,
    ]  # fmt: skip
    for turn, answer in zip(turns, held.answers, strict=True):
        assert chat.tokenizer.decode(turn.answer_ids).strip() == answer
        assert_equal_to_a_plain_pass(model, turn)


def test_a_template_without_tools_gets_their_results_as_the_users(caplog):
    chat = make_chat(STRICT)
    exchanges = shipped_dialogue(ship(TRAJECTORY[:6]))[1]
    assert chat.tokenizer.decode(chat.render(exchanges[1].messages)) == (
        "[user] Be the question.\n\nWhat is the answer?<end>[assistant] the passage<end>"
        "[user] and of the\n\npassage<end>[assistant]"
    )
    assert "no tool role" in caplog.text
    plain = make_chat(None)
    shown = plain.tokenizer.decode(plain.render(exchanges[1].messages))
    assert shown.endswith(
        "Assistant: the passage\n\nTool: and of the\n\nTool: passage\n\nAssistant:"
    )


def test_a_dialogue_that_the_template_refuses_fails_alone():
    model, chat = make_model("llama"), make_chat(STRICT)
    transcripts = [
        Transcript(name, shipped_dialogue(ship(messages))[1], "complete")
        for name, messages in (("two answers in a row", TRAJECTORY[:8]), ("fine", TRAJECTORY[:6]))
    ]
    refused, read = read_transcripts(transcripts, model, chat, max_context=500)
    assert "roles must alternate" in refused.error and not refused.turns
    assert read.error is None and len(read.turns) == 2


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        (TRAJECTORY[:2], "no answer"),
        ([], "no answer"),
        (TRAJECTORY[2:3] + TRAJECTORY[1:3], "before a user message"),
        ([{"role": "human", "content": "?"}, *TRAJECTORY], 'message 1 .* role "human"'),
        ([*TRAJECTORY, {"role": "user", "content": None}], "message 10 "),
    ],
)
def test_a_shipped_dialogue_that_cannot_be_read_says_why(messages, says):
    with pytest.raises(UserError, match=says):
        shipped_dialogue(ship(messages))


def test_a_pair_of_a_shipped_dialogue_is_replayed_from_its_messages():
    model, chat = make_model("llama"), make_chat()
    held, exchanges = shipped_dialogue(ship(TRAJECTORY))
    turns = encode_transcript(model, chat, exchanges)
    config = Config(system_prompt="Another.", history="question_only")
    record = dialogue_record(Finished("x", turns[:3], "context"), held, config, chat)
    assert [step["prompt_type"] for step in record["cot_steps"]] == ["initial", *["shipped"] * 2]
    record["messages"] = TRAJECTORY
    again = recorded_dialogue(record, config, chat)[1]
    assert [one.messages for one in again] == [one.messages for one in exchanges[:3]]
    assert [one.answer_ids for one in again] == [turn.answer_ids for turn in turns[:3]]
