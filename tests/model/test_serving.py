"""Dialogues held by a server: a small one that misbehaves on request, and a real one."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from openai import AsyncOpenAI

from spikescore.dialogues.config import load_config
from spikescore.dialogues.running import connect
from spikescore.errors import UserError
from spikescore.model import serving
from spikescore.model.chat import ChatFormat
from spikescore.model.reading import Exchange
from spikescore.model.sampling import Sampling
from spikescore.model.serving import ServedGenerator, Server
from spikescore.model.turns import Limits
from spikescore.pairs import TOKEN_KEYS, iter_records, read_states
from spikescore.runtime import derived_seed
from tests.helpers.fault_server import FaultyServer, completion
from tests.helpers.real_server import closed_port, serve
from tests.helpers.running import CHAT_TEMPLATE, LIMIT, TINY, make_tokenizer, run_script

REQUEST_KEYS = {"model", "messages", "temperature", "top_p", "max_tokens", "seed"}


@pytest.fixture
def start_server():
    started = []

    def start(reply) -> FaultyServer:
        started.append(FaultyServer(reply))
        return started[-1]

    yield start
    for server in started:
        server.close()


class Talk:
    """A conversation of n turns."""

    def __init__(self, item_id: str, n_turns: int = 3) -> None:
        self.item_id = item_id
        self.n_turns = n_turns
        self.answers: list[str] = []
        self.messages = [{"role": "user", "content": f"{item_id} 1"}]

    def answered(self, text: str, n_tokens: int) -> bool:
        self.answers.append(text)
        if len(self.answers) == self.n_turns:
            return False
        self.messages.append({"role": "assistant", "content": text})
        self.messages.append({"role": "user", "content": f"{self.item_id} {len(self.answers) + 1}"})
        return True


def make_generator(url, *, at_once=8, template=CHAT_TEMPLATE, key="none", **sampling):
    def factory(*, timeout, max_retries):
        return AsyncOpenAI(base_url=url, api_key=key, timeout=timeout, max_retries=max_retries)

    chat = ChatFormat(make_tokenizer(chat_template=template), enable_thinking=False)
    settings = {"temperature": 0.2, "top_p": 0.7, "seed": 42, **sampling}
    return ServedGenerator(Server(url, "the model", factory, at_once), chat, Sampling(**settings))


def hold(url, talks, *, seconds=20.0, context=500, **options):
    """Run the talks and return {item id: transcript}."""
    limits = Limits(max_new_tokens=9, max_context=context, item_seconds=seconds)
    transcripts = make_generator(url, **options).run(iter(talks), limits)
    return {transcript.conversation.item_id: transcript for transcript in transcripts}


def last_message(body: dict) -> str:
    return body["messages"][-1]["content"]


def test_requests_hold_what_servers_know_and_depend_on_names_only(start_server):
    server = start_server(lambda body, _: completion(f" re {last_message(body)}\n"))
    ended = hold(server.url, [Talk("a"), Talk("b")])
    assert [x.answer for x in ended["a"].exchanges] == ["re a 1", "re a 2", "re a 3"]
    assert ended["b"].reason == "complete" and ended["b"].error is None
    seeds = {last_message(body): body["seed"] for body in server.bodies}
    for body in server.bodies:
        assert set(body) == REQUEST_KEYS
        assert (body["model"], body["temperature"], body["top_p"]) == ("the model", 0.2, 0.7)
        assert body["max_tokens"] == 9
    for item in "ab":
        for turn in (1, 2, 3):
            assert seeds[f"{item} {turn}"] == derived_seed(42, item, turn) % 2**31
    assert len(set(seeds.values())) == 6
    third = next(body for body in server.bodies if last_message(body) == "b 3")
    assert third["messages"] == [
        {"role": "user", "content": "b 1"},
        {"role": "assistant", "content": "re b 1"},
        {"role": "user", "content": "b 2"},
        {"role": "assistant", "content": "re b 2"},
        {"role": "user", "content": "b 3"},
    ]
    assert ended["b"].exchanges[2].messages == third["messages"]


def test_thinking_is_switched_where_the_template_knows_the_switch(start_server):
    server = start_server(lambda body, _: completion("yes"))
    knowing = CHAT_TEMPLATE + "{% if enable_thinking %}<think>{% endif %}"
    hold(server.url, [Talk("a", 1)], template=knowing)
    assert server.bodies[0]["chat_template_kwargs"] == {"enable_thinking": False}
    assert set(server.bodies[0]) == REQUEST_KEYS | {"chat_template_kwargs"}


def test_a_template_without_system_role_is_respected(start_server):
    server = start_server(lambda body, _: completion("yes"))
    talk = Talk("a", 1)
    talk.messages.insert(0, {"role": "system", "content": "Be brief."})
    refusing = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{% endfor %}"
    )
    hold(server.url, [talk], template=refusing)
    assert server.bodies[0]["messages"] == [{"role": "user", "content": "Be brief.\n\na 1"}]


def test_as_many_are_in_flight_as_allowed_and_no_more(start_server):
    together = threading.Barrier(12)

    def reply(body, number):
        if number <= 12:
            together.wait(timeout=20)  # broken unless twelve are there at the same time
        return completion("yes")

    server = start_server(reply)
    ended = hold(server.url, (Talk(f"t{n}") for n in range(24)), at_once=12, seconds=30)
    assert len(ended) == 24 and all(len(x.exchanges) == 3 for x in ended.values())
    assert server.most == 12 and not together.broken


def test_items_are_taken_as_there_is_room(start_server):
    server = start_server(lambda body, _: completion("yes"))
    taken = []

    def talks():
        for n in range(50):
            taken.append(n)
            yield Talk(f"t{n}", 1)

    generator = make_generator(server.url, at_once=4)
    for place, _ in enumerate(generator.run(talks(), Limits(9, 500))):
        assert len(taken) <= place + 1 + 4
    assert len(taken) == 50 and generator.in_flight == 0


def test_the_servers_rate_limit_is_respected(start_server):
    def reply(body, number):
        if number == 1:
            return 429, {"Retry-After": "1"}, '{"error": {"message": "slow down"}}'
        return completion("yes")

    server = start_server(reply)
    ended = hold(server.url, [Talk("a", 2)])
    assert [x.answer for x in ended["a"].exchanges] == ["yes", "yes"]
    assert server.times[1] - server.times[0] >= 1
    assert server.bodies[0] == server.bodies[1]


def test_a_passing_fault_is_retried(start_server):
    def reply(body, number):
        if number in (1, 3):
            return 503, {"retry-after-ms": "10"}, "busy"
        return completion("yes")

    server = start_server(reply)
    ended = hold(server.url, [Talk("a", 2)])
    assert [x.answer for x in ended["a"].exchanges] == ["yes", "yes"]
    assert len(server.bodies) == 4


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ((500, {"retry-after-ms": "10"}, "out of order"), ["turn 2", "500", "out of order"]),
        ((400, {}, '{"error": {"message": "bad role"}}'), ["turn 2", "bad role"]),
        ((200, {}, '{"choices": [{"mess'), ["turn 2"]),
        ((200, {}, '{"detail": "hm"}'), ["turn 2", "no chat completion"]),
        ((200, {"Content-Type": "text/html"}, "<html>hello</html>"), ["turn 2"]),
        ((200, {}, '{"choices": []}'), ["turn 2", "no chat completion"]),
        ((200, {}, '{"choices": [{"message": {"content": 5}}]}'), ["turn 2", "int"]),
        (completion("I cannot", "content_filter"), ["turn 2", "content_filter"]),
        (completion("The", "insufficient_system_resource"), ["turn 2", "insufficient"]),
        (completion("The", "time_limit"), ["turn 2", "time_limit"]),
        (completion("Sorry", "guardrail_intervened"), ["turn 2", "guardrail"]),
        ((500, {"retry-after-ms": "10"}, "context deadline exceeded"), ["turn 2", "deadline"]),
    ],
)
def test_a_lasting_fault_fails_that_item_alone(start_server, monkeypatch, fault, words):
    monkeypatch.setattr(serving, "MAX_RETRIES", 1)
    server = start_server(
        lambda body, _: fault if last_message(body) == "b 2" else completion("yes")
    )
    ended = hold(server.url, [Talk("a"), Talk("b"), Talk("c")])
    for word in words:
        assert word in ended["b"].error
    assert ended["b"].conversation.answers == ["yes"]  # no failure text became an answer
    for item in "ac":
        assert ended[item].error is None and len(ended[item].exchanges) == 3


@pytest.mark.parametrize("content", [None, "", "  \n"])
def test_an_empty_answer_is_an_answer(start_server, content):
    server = start_server(
        lambda body, _: completion(content if last_message(body) == "a 1" else "yes", "length")
    )
    ended = hold(server.url, [Talk("a", 2)])["a"]
    assert [(x.answer, x.finish_reason) for x in ended.exchanges] == [
        ("", "length"),
        ("yes", "length"),
    ]


@pytest.mark.parametrize(
    ("ending", "kept"),
    [
        ("stop", "stop"),
        ("length", "length"),
        ("eos_token", "stop"),
        (None, "stop"),
        ("", "stop"),
        ("eos", "stop"),
        ("STOP", "stop"),
        ("FinishReason.MAX_TOKENS", "length"),
        ("end_turn", "stop"),
        ("maximum_tokens", "length"),
        ("model_length", "length"),
        ("repetition", "repetition"),
    ],  # fmt: skip
)
def test_how_an_answer_ended_is_kept(start_server, ending, kept):
    server = start_server(lambda body, _: completion("yes", ending))
    assert hold(server.url, [Talk("a", 1)])["a"].exchanges[0].finish_reason == kept


def test_a_dialogue_over_its_time_keeps_its_finished_turns(start_server):
    over = threading.Event()

    def reply(body, number):
        if last_message(body) in ("a 3", "b 1"):
            over.wait(LIMIT)
        return completion("yes")

    server = start_server(reply)
    ended = hold(server.url, [Talk("a"), Talk("b"), Talk("c")], seconds=1.5)
    over.set()
    assert ended["a"].reason == "timeout" and ended["a"].error is None
    assert [x.answer for x in ended["a"].exchanges] == ["yes", "yes"]
    assert "generation_timeout" in ended["b"].error
    assert ended["c"].reason == "complete" and len(ended["c"].exchanges) == 3


def test_the_context_ends_a_dialogue_here_and_on_the_server(start_server):
    too_long = '{"error": {"message": "maximum context length is 20 tokens"}}'
    server = start_server(
        lambda body, _: (400, {}, too_long) if last_message(body) == "a 3" else completion("yes")
    )
    there = hold(server.url, [Talk("a")])["a"]
    assert (there.reason, there.error, len(there.exchanges)) == ("context", None, 2)
    generator = make_generator(server.url)
    lengths = [len(generator.chat.render(x.messages)) for x in there.exchanges]
    here = hold(server.url, [Talk("b")], context=lengths[1] + 2)["b"]
    assert (here.reason, here.error, len(here.exchanges)) == ("context", None, 2)
    assert server.bodies[-1]["max_tokens"] == 2  # what the context leaves, not 9
    cut = start_server(
        lambda body, _: completion("ye", "stop" if body["max_tokens"] == 9 else "length")
    )
    stump = hold(cut.url, [Talk("b")], context=lengths[1] + 2)["b"]
    assert (stump.reason, stump.error, len(stump.exchanges)) == ("context", None, 1)
    assert "context" in hold(server.url, [Talk("c")], context=lengths[0])["c"].error


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (422, '{"error": "`inputs` tokens + `max_new_tokens` must be <= 2048. Given: 1900"}'),
        (400, '{"message": "The sum of prompt length (2040) should not exceed max_num_tokens"}'),
        (400, '{"error": {"code": "context_length_exceeded", "message": "Reduce the messages"}}'),
        (413, '{"error": "prompt is too long: 9001 tokens"}'),
        (422, '{"error": "`inputs` must have less than 4096 tokens. Given: 5000"}'),
        (400, '{"message": "Prompt length 5000 > max_seq_len 4096"}'),
        (400, '{"message": "This model only supports up to 4096 input tokens"}'),
        (400, '{"detail": "internal error code: INPUT_LENGTH_ERROR"}'),
        (400, '{"message": "<400> InvalidParameter: Range of input length should be [1, 30720]"}'),
        (
            400,
            '{"message": "length of prompt_tokens (99) must be less than max_seq_len (98)."}',
        ),
        (400, '{"error": "the request exceeds the available KV cache size"}'),
        (500, '{"error": {"code": 500, "message": "Context size has been exceeded."}}'),
        (200, "model_context_window_exceeded"),
        (200, '{"completion_tokens": 0}'),
        (200, '{"completion_tokens": 4}'),
    ],
)
def test_the_ways_in_which_servers_say_that_the_context_is_full(
    start_server, monkeypatch, status, said
):
    monkeypatch.setattr(serving, "MAX_RETRIES", 1)

    def reply(body, _):
        if last_message(body) != "a 3":
            return completion("yes")
        if status != 200:
            return status, {"retry-after-ms": "10"}, said
        if not said.startswith("{"):
            return completion("ye", said)
        usage = json.loads(said)
        status_code, headers, text = completion(
            "" if not usage["completion_tokens"] else "ye", "length"
        )
        return status_code, headers, json.dumps({**json.loads(text), "usage": usage})

    ended = hold(start_server(reply).url, [Talk("a")])["a"]
    assert (ended.reason, ended.error, len(ended.exchanges)) == ("context", None, 2)


@pytest.mark.parametrize(("read", "warned"), [(1.0, 0), (0.95, 0), (0.5, 1), (0.0, 0)])
def test_a_server_that_cuts_a_prompt_without_a_word_is_warned_of_once(
    start_server, caplog, read, warned
):
    chat = make_generator("http://nowhere").chat

    def reply(body, _):
        status, headers, text = completion("yes")
        counted = {"prompt_tokens": int(read * len(chat.render(body["messages"])))}
        return status, headers, json.dumps({**json.loads(text), "usage": counted})

    ended = hold(start_server(reply).url, [Talk("a"), Talk("b")])
    assert all(len(one.exchanges) == 3 for one in ended.values())
    assert caplog.text.count("cuts long dialogues without a word") == warned


def test_a_servers_own_limit_is_known_also_where_the_first_answer_is_given(start_server):
    def reply(body, _):
        status, headers, text = completion("ye", "length")
        return status, headers, json.dumps({**json.loads(text), "usage": {"completion_tokens": 4}})

    talk = Talk("a")
    talk.exchanges, talk.first_turn = [Exchange(list(talk.messages), "given")], 2
    assert talk.answered("given", 1)
    ended = hold(start_server(reply).url, [talk])["a"]
    assert (ended.reason, ended.error, len(ended.exchanges)) == ("complete", None, 3)
    assert [one.answer for one in ended.exchanges] == ["given", "ye", "ye"]


@pytest.mark.parametrize(
    ("name", "refusal", "renamed"),
    [
        ("temperature", "Unsupported value: 'temperature' does not support 0.2", None),
        ("seed", "[{'loc': ['body', 'seed'], 'msg': 'Extra inputs are not permitted'}]", None),
        ("max_tokens", "'max_tokens' is not supported. Use 'max_completion_tokens' instead.",
         "max_completion_tokens"),
        ("top_p", "Unrecognized request argument supplied: top_p", None),
    ],
)  # fmt: skip
def test_a_parameter_that_a_server_refuses_is_left_out_or_renamed(
    start_server, caplog, name, refusal, renamed
):
    def reply(body, _):
        error = {"error": {"message": refusal}}
        return (400, {}, json.dumps(error)) if name in body else completion("yes")

    server = start_server(reply)
    ended = hold(server.url, [Talk("a")], at_once=1)["a"]
    assert ended.error is None and len(ended.exchanges) == 3
    assert len(server.bodies) == 4  # asked once with it, and never again
    assert set(server.bodies[-1]) == REQUEST_KEYS - {name} | ({renamed} if renamed else set())
    assert caplog.text.count(f"refuses {name}") == 1


def test_where_a_server_takes_one_of_both_the_temperature_stays(start_server):
    refusal = "`temperature` and `top_p` cannot both be specified for this model."

    def reply(body, _):
        both = {"temperature", "top_p"} <= body.keys()
        return (400, {}, json.dumps({"error": {"message": refusal}})) if both else completion("yes")

    server = start_server(reply)
    assert len(hold(server.url, [Talk("a")], at_once=1)["a"].exchanges) == 3
    assert set(server.bodies[-1]) == REQUEST_KEYS - {"top_p"}


def test_time_is_shared_with_the_requests_beside_it(start_server):
    """Twelve wait for each other, so that the batch takes longer than each may take alone."""
    together = threading.Barrier(12)

    def reply(body, number):
        together.wait(timeout=LIMIT)
        time.sleep(0.5)
        return completion("yes")

    server = start_server(reply)
    ended = hold(server.url, [Talk(f"t{n}") for n in range(12)], at_once=12, seconds=1.2)
    assert {transcript.reason for transcript in ended.values()} == {"complete"}


def test_a_server_that_answers_nobody_ends_the_dialogues(start_server, monkeypatch):
    monkeypatch.setattr(serving, "STUCK_SECONDS", 0.5)
    over = threading.Event()

    def reply(body, number):
        if last_message(body) != "a 1":
            over.wait(LIMIT)
        return completion("yes")

    ended = hold(start_server(reply).url, [Talk("a"), Talk("b")], seconds=None)
    over.set()
    assert (ended["a"].reason, len(ended["a"].exchanges)) == ("timeout", 1)
    assert "answered nobody" in ended["b"].error


def test_an_error_while_items_are_read_ends_the_run(start_server):
    server = start_server(lambda body, _: completion("yes"))

    def talks():
        yield Talk("a")
        raise UserError("the folder holds other pairs")

    with pytest.raises(UserError, match="other pairs"):
        hold(server.url, talks())


def test_a_server_that_is_not_there_is_named():
    url = f"http://127.0.0.1:{closed_port()}/v1"
    with pytest.raises(UserError, match="server_url") as error:
        make_generator(url).check()
    assert url in str(error.value) and "cannot be reached" in str(error.value)


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ((401, {}, '{"error": {"message": "no such key"}}'), ["refused the key", "no such key"]),
        ((404, {}, '{"error": {"message": "no model"}}'), ["server_model", "the model", "/v1"]),
        ((400, {}, '{"detail": "field seed"}'), ["the model", "field seed"]),
        ((200, {"Content-Type": "text/html"}, "<html></html>"), ["chat server", "/v1"]),
        ((200, {}, "[1]"), ["chat server"]),
    ],
)
def test_a_server_that_cannot_be_used_is_named_before_any_work(start_server, reply, words):
    server = start_server(lambda body, _: reply)
    with pytest.raises(UserError) as error:
        make_generator(server.url).check()
    for word in [server.url, *words]:
        assert word in str(error.value)


def test_the_first_request_is_like_all_others(start_server):
    server = start_server(lambda body, _: completion("y", "length"))
    make_generator(server.url).check()
    assert set(server.bodies[0]) == REQUEST_KEYS
    assert server.bodies[0]["max_tokens"] == 1


# --- the whole of stage 1 ---------------------------------------------------------------------


def served_command(config_file, url, *changes):
    settings = ["backend=openai", f"server_url={url}", *changes]
    flags = [part for change in settings for part in ("--set", change)]
    return ["reasoning_lite.py", "--config", config_file, *flags]


def records_in(folder: Path) -> dict[str, dict]:
    return {record["id"]: record for _, record in iter_records(folder)}


def test_failures_are_counted_and_a_second_run_mends_them(config_file, start_server, tmp_path):
    broken = {"on": True}

    def reply(body, number):
        # the second turn about 43 + 44, which no prompt but the first names
        about = body["messages"][1]["content"] if len(body["messages"]) > 1 else ""
        if broken["on"] and "43 plus" in about and len(body["messages"]) == 4:
            return 400, {}, '{"error": {"message": "refused here"}}'
        return completion("It is 91.")

    server = start_server(reply)
    command = served_command(config_file, server.url, "server_model=big", "max_in_flight=3")
    first = run_script(*command)
    assert first.returncode == 1, first.stderr
    assert "wrote 11 pairs" in first.stdout and "1 failed" in first.stdout
    folder = tmp_path / "outputs"
    assert "refused here" in json.loads((folder / "sum-43.error.json").read_text())["error"]
    assert not (folder / "sum-43.json").exists()
    for record in records_in(folder).values():
        assert (record["backend"], record["server_model"]) == ("openai", "big")
        assert [step["response"] for step in record["cot_steps"]] == ["It is 91."] * 5
        assert all(step["perplexity"] > 1 for step in record["cot_steps"])
        assert record["nil_label"] == int(record["id"] == "sum-45")
        states = read_states(folder / f"{record['id']}.pkl")
        assert sorted(states) == [1, 2, 3, 4, 5] and states[1][TOKEN_KEYS[0]].shape == (4, 64)
    assert server.most <= 3
    broken["on"] = False
    second = run_script(*command)
    assert second.returncode == 0 and "wrote 1 pairs" in second.stdout
    assert not (folder / "sum-43.error.json").exists()
    moved = run_script(*served_command(config_file, server.url, "server_model=other"))
    assert moved.returncode == 2 and "server_model: big -> other" in moved.stderr


def test_an_unreachable_server_is_one_clear_message(config_file, tmp_path):
    url = f"http://127.0.0.1:{closed_port()}/v1"
    result = run_script(*served_command(config_file, url))
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert url in result.stderr and not (tmp_path / "outputs").exists()


def test_keys_go_only_where_they_belong(config_file, start_server, monkeypatch):
    server = start_server(lambda body, _: completion("y"))
    chat = make_generator(server.url).chat
    monkeypatch.setenv("OPENAI_API_KEY", "judge-key")
    monkeypatch.setenv("SERVER_API_KEY", "server-key")
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    connect(load_config(config_file, [f"server_url={server.url}"]), chat)
    connect(load_config(config_file), chat)
    monkeypatch.delenv("SERVER_API_KEY")
    connect(load_config(config_file, [f"server_url={server.url}"]), chat)
    assert list(dict.fromkeys(server.keys)) == [
        "Bearer server-key", "Bearer judge-key", "Bearer none"
    ]  # fmt: skip
    monkeypatch.delenv("OPENAI_BASE_URL")
    with pytest.raises(UserError, match="server_url.*OPENAI_BASE_URL"):
        connect(load_config(config_file), chat)


# --- a real server ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_server(tmp_path_factory):
    """`transformers serve` with the tiny model; its address."""
    with serve(TINY, tmp_path_factory.mktemp("server")) as url:
        yield url


def test_a_real_server_holds_the_dialogues_that_the_engine_holds(
    config_file, real_server, tmp_path
):
    # greedy: the two draw random tokens in different ways
    settings = [f"model_path={TINY}", "temperature=0", "max_new_tokens=24", "max_steps=4"]
    served = run_script(*served_command(config_file, real_server, *settings))
    assert served.returncode == 0, served.stderr
    assert "wrote 12 pairs" in served.stdout
    flags = [part for change in settings for part in ("--set", change)]
    command = ["reasoning_lite.py", "--config", config_file, *flags]
    local = run_script(*command, "--set", f"output_dir={tmp_path}/local")
    assert local.returncode == 0, local.stderr
    ours, theirs = records_in(tmp_path / "outputs"), records_in(tmp_path / "local")
    assert ours.keys() == theirs.keys() and len(ours) == 12
    turns = same_answers = 0
    for name, record in ours.items():
        states = read_states(tmp_path / "outputs" / f"{name}.pkl")
        expected = read_states(tmp_path / "local" / f"{name}.pkl")
        assert record["nil_label"] == theirs[name]["nil_label"]
        for one, two in zip(record["cot_steps"], theirs[name]["cot_steps"], strict=True):
            for key in ("prompt", "response", "finish_reason", "n_prompt_tokens", "turn"):
                assert one[key] == two[key], (name, one["turn"], key)
            # a model may write a text in other tokens than its tokenizer does
            same = one["response_ids"] == two["response_ids"]
            turns, same_answers = turns + 1, same_answers + same
            for key in TOKEN_KEYS if same else TOKEN_KEYS[2:]:
                a, b = (x[one["turn"]][key].astype(float) for x in (states, expected))
                assert np.allclose(a, b, rtol=2e-3, atol=2e-3), (name, one["turn"], key)
            if same:
                assert one["perplexity"] == pytest.approx(two["perplexity"], rel=1e-3)
    assert turns == 48 and same_answers >= 24
