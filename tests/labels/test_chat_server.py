"""Asking many at once: each distinct request once, failures told apart, replies kept on disk."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import sqlite3
import threading
import time
from collections import Counter
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from spikescore.errors import UserError
from spikescore.labels import chat_server
from spikescore.labels.chat_server import GIVE_UP_AFTER, Asker, Reply, Slots
from spikescore.labels.chat_server import make_asker as make_asker_of
from spikescore.labels.reply_cache import ReplyCache, request_key
from spikescore.runtime import EventLoop
from tests.helpers.fault_server import FaultyServer, WaitingAsker, client, completion, failing
from tests.helpers.running import LIMIT, start_script


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_server, "_PAUSE", 0.01)


@pytest.fixture(params=["lane", "client"])
def way(request, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to a server: the plain connections of `wire`, and an openai client's own."""
    if request.param == "client":
        monkeypatch.setattr(chat_server, "has_lane", lambda client: False)
    return request.param


def make_asker(server, cache=None, *, model="m", **options) -> WaitingAsker:
    return WaitingAsker(partial(client, server.url), model, cache=cache, **options)


def talk(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def asked_of(body) -> str:
    return body["messages"][-1]["content"]


def echo(body, _=None):
    return completion(f"you said {asked_of(body)}")


def number(text: str) -> int | None:
    return int(text) if text.isdigit() else None


def test_equal_requests_are_asked_once_and_remembered(tmp_path: Path) -> None:
    cache = tmp_path / "deep" / "replies.sqlite"
    with FaultyServer(echo) as server:
        asker = make_asker(server, cache)
        replies = asker.ask_many([talk("a"), talk("b"), talk("a")])
        assert [one.text for one in replies] == ["you said a", "you said b", "you said a"]
        assert asker.stats == {"asked": 2, "from_cache": 0, "deduplicated": 1, "failed": 0}
        assert len(server.bodies) == 2
        assert all(body["temperature"] == 0 and "max_tokens" not in body for body in server.bodies)

        again = make_asker(server, cache)
        assert again.ask_many([talk("b"), talk("c")])[0] == Reply("you said b")
        assert again.stats == {"asked": 1, "from_cache": 1, "deduplicated": 0, "failed": 0}
        assert again.ask_many([]) == []
        assert Counter(map(asked_of, server.bodies)) == {"a": 1, "b": 1, "c": 1}

        without = make_asker(server)
        for _ in range(2):
            without.ask_many([talk("a")])
        assert len(server.bodies) == 5


def test_what_else_decides_a_reply_is_part_of_its_key(tmp_path: Path) -> None:
    cache = tmp_path / "replies.sqlite"
    with FaultyServer(echo) as one, FaultyServer(echo) as other:
        make_asker(one, cache).ask_many([talk("a")])
        make_asker(one, cache, model="n").ask_many([talk("a")])
        make_asker(one, cache).ask_many([[{"role": "system", "content": "a"}]])
        make_asker(other, cache).ask_many([talk("a")])
        assert (len(one.bodies), len(other.bodies)) == (3, 1)


def test_faults_are_retried_or_listed_and_a_rerun_asks_only_what_failed(
    way, tmp_path: Path
) -> None:
    # max_retries 2: three tries, so that with 45% faults a share of the requests fails for good
    options = {"timeout": 0.4, "max_retries": 2, "concurrency": 48}
    texts = [str(n) for n in range(80)]
    reply = failing(asked_of, seed=7)
    with FaultyServer(reply) as server:
        first = make_asker(server, tmp_path / "replies.sqlite", **options)
        replies = first.ask_many([talk(text) for text in texts], parse=number)
        missing = [text for text, one in zip(texts, replies, strict=True) if one.text is None]
        assert all(one.text == text or one.error for text, one in zip(texts, replies, strict=True))
        assert 0 < len(missing) < 25 and first.stats["failed"] == len(missing)
        met = Counter(reply.fault(body, 1) for body in server.bodies)
        assert all(met[name] for name in ("", "429", "500", "slow", "garbage"))

        before = len(server.bodies)
        second = make_asker(server, tmp_path / "replies.sqlite", **options)
        rerun = second.ask_many([talk(text) for text in texts], parse=number)
        assert second.stats["asked"] == len(missing)
        assert {asked_of(body) for body in server.bodies[before:]} == set(missing)
        kept = [(one, two) for one, two in zip(replies, rerun, strict=True) if one.text]
        assert len(kept) == 80 - len(missing) and all(one == two for one, two in kept)

    # what one uninterrupted look at the plan of faults says: three calls that fail in a row
    def fails(text: str) -> bool:
        body = {"messages": talk(text), "model": "m", "temperature": 0}
        return all(reply.fault(body, n) in ("429", "500", "slow") for n in (1, 2, 3))

    assert set(filter(fails, texts)) <= set(missing)


def test_an_unusable_reply_is_asked_again_and_not_kept(tmp_path: Path) -> None:
    seen: Counter[str] = Counter()

    def reply(body, _):
        text = asked_of(body)
        seen[text] += 1
        if text == "never" or seen[text] == 1:
            return completion("well ...")
        return completion("42")

    with FaultyServer(reply) as server:
        asker = make_asker(server, tmp_path / "replies.sqlite")
        late, never = asker.ask_many([talk("late"), talk("never")], parse=number)
        assert late == Reply("42") and seen == {"late": 2, "never": 3}
        assert never.text is None and "well ..." in never.error
        asker.ask_many([talk("late"), talk("never")], parse=number)
        assert seen == {"late": 2, "never": 6}


def test_a_reply_kept_for_a_laxer_parser_is_asked_again(tmp_path: Path) -> None:
    with FaultyServer(lambda body, n: completion(["so, 7", "7"][n - 1])) as server:
        asker = make_asker(server, tmp_path / "replies.sqlite")
        assert asker.ask_many([talk("a")]) == [Reply("so, 7")]
        assert asker.ask_many([talk("a")], parse=number) == [Reply("7")]
        assert asker.ask_many([talk("a")]) == [Reply("7")]


@pytest.mark.parametrize(
    "broken",
    [
        (200, {"Content-Type": "text/html"}, "<html>hello</html>"),
        (200, {}, "{"),
        (200, {}, json.dumps({"choices": []})),
        (200, {}, json.dumps({"choices": [{"message": {"content": None}}]})),
        (200, {}, json.dumps(["no object"])),
        (400, {}, json.dumps({"error": {"message": "too long"}})),
        (429, {"retry-after-ms": "1"}, "slow down"),
    ],
    ids=["html", "cut", "no choice", "no text", "list", "400", "429"],
)
def test_what_is_no_completion_is_an_error_costs_no_other_item_and_is_not_kept(
    way, broken, tmp_path: Path
) -> None:
    with FaultyServer(lambda b, _: broken if asked_of(b) == "bad" else echo(b)) as server:
        for n_asked in (2, 1):
            asker = make_asker(server, tmp_path / "replies.sqlite", max_retries=1)
            bad, good = asker.ask_many([talk("bad"), talk("good")])
            assert good == Reply("you said good")
            assert bad.text is None and bad.error
            assert asker.stats["failed"] == 1 and asker.stats["asked"] == n_asked


def test_no_part_of_a_key_is_shown_where_what_was_said_is_cut(way, monkeypatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "canary-0123456789")
    said = json.dumps({"error": "x" * 180 + " canary-0123456789"})
    with FaultyServer(lambda *_: (200, {}, said)) as server:
        (reply,) = make_asker(server).ask_many([talk("a")])
    assert "no chat completion" in reply.error and "cana" not in reply.error


def test_no_more_calls_at_a_time_than_allowed_and_no_fewer() -> None:
    together = threading.Barrier(7)  # broken unless seven are there at the same time

    def slow(body, _):
        together.wait(LIMIT)
        return echo(body)

    with FaultyServer(slow) as server:
        make_asker(server, concurrency=7).ask_many([talk(str(n)) for n in range(28)])
        assert server.most == 7


def test_calls_at_a_time_grow_while_the_server_is_quick_to_no_more_than_allowed(way) -> None:
    def slow(body, _):
        time.sleep(0.4)
        return echo(body)

    texts = [str(n) for n in range(400)]
    with FaultyServer(slow) as server:
        asker = make_asker(server, concurrency=150, timeout=600.0)
        replies = asker.ask_many([talk(text) for text in texts])
        assert [one.text for one in replies] == [f"you said {text}" for text in texts]
        assert chat_server._AT_FIRST < server.most <= 150


def test_slots_grow_with_quick_replies_and_are_halved_once_for_a_crowd() -> None:
    async def largest(slots: Slots) -> int:
        """How many get in."""
        tasks = [asyncio.create_task(slots.__aenter__()) for _ in range(600)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        n = sum(task.done() for task in tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for _ in range(n):
            await slots.__aexit__()
        return n

    async def check() -> None:
        slots, first = Slots(200, quick=5.0), chat_server._AT_FIRST
        assert await largest(slots) == first == await largest(slots)
        for _ in range(10):
            slots.replied(time.monotonic() - 5.1)  # too slow for more
        assert await largest(slots) == first
        for _ in range(18):
            slots.replied(time.monotonic())
        assert await largest(slots) == first + 36
        for _ in range(1000):
            slots.replied(time.monotonic())
        assert await largest(slots) == 200
        begun = time.monotonic()
        async with slots:
            for _ in range(30):  # all that began before the first of them was refused
                slots.crowded(begun)
            assert await largest(slots) == 99  # and the one that is under way
        assert await largest(slots) == 100
        for _ in range(90):
            slots.replied(time.monotonic())
        assert await largest(slots) == 100  # one more a round, from here on
        for _ in range(20):
            slots.replied(time.monotonic())
        assert await largest(slots) == 101
        for _ in range(20):
            slots.crowded(time.monotonic())
        assert await largest(slots) == 1  # never none

        # a waiter that is cancelled as its turn comes passes the slot on
        await slots.__aenter__()
        one, other = (asyncio.create_task(slots.__aenter__()) for _ in range(2))
        await asyncio.sleep(0)
        await slots.__aexit__()
        one.cancel()
        await asyncio.wait_for(other, LIMIT)
        assert one.cancelled()

    asyncio.run(check())


def test_a_crowded_server_gets_fewer_calls_at_a_time() -> None:
    def reply(body, _):
        if server.now > 16:
            return 429, {"retry-after-ms": "20"}, "{}"
        time.sleep(0.02)
        return echo(body)

    sizes = []
    with FaultyServer(reply) as server:
        asker = make_asker(server, max_retries=1000)

        async def all_of_them():
            found = await asyncio.gather(*(asker.ask(talk(str(n))) for n in range(300)))
            sizes.append(asker._slots._size)
            return found

        with EventLoop() as loop:
            loop.open(asker)
            replies = loop.run(all_of_them())
    assert all(one.text for one in replies) and sizes[0] < chat_server._AT_FIRST


def test_retry_after_is_honoured(way) -> None:
    def busy_once(body, number):
        return (429, {"retry-after": "1"}, "{}") if number == 1 else echo(body)

    with FaultyServer(busy_once) as server:
        assert make_asker(server).ask_many([talk("a")])[0].text == "you said a"
        assert 1.0 <= server.times[1] - server.times[0] < 3


def test_a_reply_that_only_drips_is_given_up(way, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_server, "_BACK_OFF_ROOM", 0.2)
    stop = threading.Event()

    def serve(listener) -> None:
        connection = listener.accept()[0]
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
        while not stop.wait(0.05):
            connection.sendall(b" ")
        connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        asker = WaitingAsker(partial(client, url), "m", cache=None, timeout=0.3, max_retries=0)
        begin = time.monotonic()
        (reply,) = asker.ask_many([talk("a")])
        took = time.monotonic() - begin
        stop.set()
        thread.join()
    assert reply.text is None and "no whole reply" in reply.error
    assert took >= 0.5


def test_a_setting_that_the_server_refuses_is_left_out_from_then_on(way, tmp_path: Path) -> None:
    def reply(body, _):
        if "temperature" in body:
            error = {"message": "Only the default (1) is supported", "param": "temperature"}
            return 400, {}, json.dumps({"error": error})
        return echo(body)

    with FaultyServer(reply) as server:
        for texts in ("ab", "abcd"):  # what was kept is known under the same key
            asker = make_asker(server, tmp_path / "replies.sqlite", concurrency=1)
            replies = asker.ask_many([talk(text) for text in texts])
            assert [one.text for one in replies] == [f"you said {text}" for text in texts]
        assert ["temperature" in body for body in server.bodies] == [True, False, False] * 2


@pytest.mark.parametrize("status", [401, 404])
def test_a_refused_key_or_model_ends_the_run_at_once(way, status: int, tmp_path: Path) -> None:
    def reply(body, number):
        return echo(body) if number <= 3 else (status, {}, json.dumps({"error": "no such thing"}))

    with FaultyServer(reply) as server:
        asker = make_asker(server, tmp_path / "replies.sqlite", concurrency=1)
        with pytest.raises(UserError, match=rf"status {status}.*check OPENAI_API_KEY"):
            asker.ask_many([talk(str(n)) for n in range(200)])
        assert len(server.bodies) == 4
        assert make_asker(server, tmp_path / "replies.sqlite").ask_many([talk("2")])[0].text


def test_who_asks_one_model_shares_its_slots() -> None:
    with FaultyServer(echo) as server:
        askers: dict[str, Asker] = {}
        options = {"client_factory": partial(client, server.url), "askers": askers}
        one, same, other = (make_asker_of(f"llm_{name}", **options) for name in "aab")
        assert one is same and one is not other and set(askers) == {"a", "b"}

        async def ask(text: str) -> Reply:
            return await one.ask(talk(text))

        with EventLoop() as loop:
            loop.open(one)
            with EventLoop() as _:
                loop.open(same)
            assert loop.run(ask("x")) == Reply("you said x")


def test_a_mistake_in_address_or_key_is_seen_before_anything_is_asked(tmp_path: Path) -> None:
    with FaultyServer(echo) as gone:
        url, cache = gone.url, tmp_path / "replies.sqlite"
        # a server without a list of models is one all the same
        make_asker_of("llm_m", client_factory=partial(client, url), cache=None)
    with pytest.raises(UserError, match="cannot be reached.*OPENAI_BASE_URL"):
        make_asker_of("llm_m", client_factory=partial(client, url), cache=cache)
    ReplyCache(cache).close()  # replies are known: they can be read again
    make_asker_of("llm_m", client_factory=partial(client, url), cache=cache)
    with FaultyServer(echo, models=(401, {}, "{}")) as strict:
        with pytest.raises(UserError, match="status 401.*check OPENAI_API_KEY"):
            make_asker_of("llm_m", client_factory=partial(client, strict.url), cache=cache)
        assert strict.bodies == []


def test_a_dead_server_is_given_up(way, caplog: pytest.LogCaptureFixture, monkeypatch) -> None:
    monkeypatch.setattr(logging.getLogger("spikescore"), "propagate", True)
    with FaultyServer(echo) as gone:
        url = gone.url
    asker = WaitingAsker(partial(client, url), "m", cache=None, concurrency=8, max_retries=0)
    replies = asker.ask_many([talk(str(n)) for n in range(500)])
    assert all(one.error for one in replies) and asker.stats["failed"] == 500
    assert GIVE_UP_AFTER <= asker.stats["asked"] < GIVE_UP_AFTER + 8
    assert "giving up" in caplog.text and "not asked" in replies[-1].error


def test_bad_set_up_is_a_user_error(tmp_path: Path) -> None:
    def keyless(*, timeout, max_retries):
        raise UserError("no key")

    with pytest.raises(UserError, match="no key"):
        WaitingAsker(keyless, "m", cache=None)
    with pytest.raises(UserError, match="at least 1"):
        WaitingAsker(partial(client, "http://127.0.0.1:1/v1"), "m", cache=None, concurrency=0)


# --- the cache --------------------------------------------------------------------------------


def test_the_cache_gives_back_what_was_put(tmp_path: Path) -> None:
    path = tmp_path / "replies.sqlite"
    texts = {f"k{n}": f"reply {n} ☃ \ud83d \x00" for n in range(1200)}
    with ReplyCache(path) as cache:
        for key, text in texts.items():
            cache.put(key, text)
        cache.put("k1", "newer")
    with ReplyCache(path) as cache:
        assert {key: cache.get(key) for key in texts} == texts | {"k1": "newer"}
        assert cache.get("unknown") is None
    with closing(sqlite3.connect(path)) as table:
        assert table.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_the_key_depends_on_all_of_the_request_but_not_on_the_order_of_its_fields() -> None:
    request = {"model": "m", "messages": talk("é"), "temperature": 0}
    keys = {
        request_key("http://a/v1/", request),
        request_key("http://b/v1/", request),
        request_key("http://a/v1/", {**request, "model": "n"}),
        request_key("http://a/v1/", {**request, "temperature": 1}),
        request_key("http://a/v1/", {**request, "messages": talk("e")}),
    }
    assert len(keys) == 5 and all(len(key) == 64 for key in keys)
    assert request_key("http://a/v1/", dict(reversed(request.items()))) in keys


WRITER = """
import sys, time
from spikescore.labels.reply_cache import ReplyCache
path, name, start = sys.argv[1:]
time.sleep(max(0, float(start) - time.time()))
with ReplyCache(path) as cache:
    for n in range(200):
        cache.put(f"{name}{n}", name)
"""


def test_processes_share_a_cache(tmp_path: Path) -> None:
    path, start = tmp_path / "replies.sqlite", time.time() + 0.5
    writers = [start_script("-c", WRITER, path, name, start) for name in "abcd"]
    assert [writer.wait(LIMIT) for writer in writers] == [0] * 4
    with ReplyCache(path) as cache:
        expected = {f"{name}{n}": name for name in "abcd" for n in range(200)}
        assert {key: cache.get(key) for key in expected} == expected


def test_a_damaged_cache_says_what_to_do(tmp_path: Path) -> None:
    noise = tmp_path / "noise.sqlite"
    noise.write_bytes(b"this is no data base at all, however long one looks at it" * 30)
    with pytest.raises(UserError, match=r'"\S*noise.sqlite" is damaged .*delete it'):
        WaitingAsker(partial(client, "http://127.0.0.1:1/v1"), "m", cache=noise)

    bitten = tmp_path / "bitten.sqlite"
    with ReplyCache(bitten) as cache:
        for n in range(500):
            cache.put(f"{n:064}", "reply " * 20)
    data = bytearray(bitten.read_bytes())
    data[8192:] = b"\xa5" * (len(data) - 8192)
    bitten.write_bytes(data)
    with pytest.raises(UserError, match="is damaged"), ReplyCache(bitten) as cache:
        for n in range(500):
            cache.get(f"{n:064}")


def test_a_cache_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be used"):
        ReplyCache(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made"):
        ReplyCache(tmp_path / "file" / "replies.sqlite")
    other = tmp_path / "other.sqlite"
    with closing(sqlite3.connect(other)) as table:
        table.execute("CREATE TABLE replies (name TEXT)")
    with pytest.raises(UserError, match="cannot be used"), ReplyCache(other) as cache:
        cache.get("a")
