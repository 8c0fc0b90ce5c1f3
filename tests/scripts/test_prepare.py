"""Fetching the real data sets: against a local server that breaks off, lies, refuses and moves."""

from __future__ import annotations

import hashlib
import io
import json
import random
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest

from spikescore.data.reading import load_questions
from spikescore.errors import UserError
from tests.helpers.running import ROOT, run_script, start_script, wait_until

sys.path.insert(0, str(ROOT / "datasets"))

import fetching  # noqa: E402
import prepare  # noqa: E402

ROWS = [{"ID": f"x-{n}", "Body": "Ann has 2 pens.", "Question": "How many?", "Answer": 2.0,
         "Equation": "2", "Type": "None"} for n in range(700)]  # fmt: skip
JSON_ROWS = json.dumps(ROWS).encode()


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass
class Server:
    """Serves `files`; `faults` are used up one a request: ("break", n bytes), ("status", n), or
    ("hang", n bytes), which ends when the client has gone.
    """

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    faults: list[tuple[str, int]] = field(default_factory=list)
    redirects: dict[str, str] = field(default_factory=dict)
    seen: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    etags: bool = True

    @property
    def paths(self) -> list[str]:
        return [path for path, _ in self.seen]


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:  # noqa: N802
            self.do_GET()

        def do_GET(self) -> None:  # noqa: N802
            server.seen.append((self.path, dict(self.headers)))
            kind, number = server.faults.pop(0) if server.faults else ("", 0)
            if kind == "status":
                return self.send_error(number)
            if self.path in server.redirects:
                self.send_response(302)
                self.send_header("Location", server.redirects[self.path])
                for name, value in (
                    ("Content-Length", "0"),
                    ("X-Repo-Commit", "r"),
                    ("X-Linked-Etag", '"e"'),
                    ("X-Linked-Size", "35"),
                ):
                    self.send_header(name, value)  # fmt: skip
                return self.end_headers()
            data = server.files.get(self.path)
            if data is None:
                return self.send_error(404)
            etag, start = f'"{sha(data)[:16]}"', 0
            wanted = self.headers.get("Range")
            if wanted and self.headers.get("If-Range") == etag:
                start = int(wanted.removeprefix("bytes=").rstrip("-"))
                if start >= len(data):
                    return self.send_error(416)
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(data) - start))
            if server.etags:
                self.send_header("ETag", etag)
            if "/resolve/" in self.path:
                self.send_header("X-Repo-Commit", self.path.split("/resolve/")[1].split("/")[0])
            self.end_headers()
            if self.command == "HEAD":
                return None
            self.wfile.write(data[start : start + number] if number else data[start:])
            if kind == "hang":
                self.rfile.read(1)

        def log_message(self, *args: object) -> None:
            pass

    return Handler


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    state = Server()
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), _handler(state))
    state.url = f"http://127.0.0.1:{httpd.server_port}"
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("HF_ENDPOINT", state.url)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(fetching, "WAIT", 0.0)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    yield state
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def write_table(tmp_path: Path, files: list, **more) -> Path:
    """Write a table with the one set "demo" and return its path."""
    row = {"title": "Demo", "domain": "d", "licence": "MIT", "citation": "c", "home": "http://h",
           "files": files, **more}  # fmt: skip
    table = tmp_path / "table.json"
    table.write_text(json.dumps({"demo": row}))
    return table


def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list, **more) -> int:
    """Run the command on the set "demo" of such a table; return its exit status."""
    table = write_table(tmp_path, files, **more)
    arguments = ("prepare.py", "demo", "--to", str(tmp_path), "--table", str(table))
    monkeypatch.setattr(sys, "argv", list(arguments))
    return prepare.main()


# --- one file ---------------------------------------------------------------------------------


def test_fetched_checked_recorded_and_kept_on_a_rerun(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    server.files["/r1/a.json"] = JSON_ROWS
    files = [{"path": "a.json", "rows": 700, "sha256": sha(JSON_ROWS)}]
    more = {"url": server.url + "/{revision}", "revision": "r1"}
    assert run(tmp_path, monkeypatch, files, **more) == 0
    target = tmp_path / "demo" / "a.json"
    assert target.read_bytes() == JSON_ROWS
    assert len(load_questions(target).questions) == 700
    record = json.loads((tmp_path / "demo" / "SOURCE.json").read_text())
    assert record["revision"] == "r1" and record["files"]["a.json"] == {
        "url": f"{server.url}/r1/a.json", "sha256": sha(JSON_ROWS), "bytes": len(JSON_ROWS),
        "rows": 700, "pinned": True,
    }  # fmt: skip
    assert "fetched a.json, 700 rows" in capsys.readouterr().out
    assert run(tmp_path, monkeypatch, files, **more) == 0
    assert "kept a.json, 700 rows" in capsys.readouterr().out and len(server.seen) == 1
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == ["SOURCE.json", "a.json"]


@pytest.mark.parametrize("recorded", [True, False])
def test_a_changed_file_is_fetched_again_and_a_right_one_is_kept_without_a_record(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorded: bool
) -> None:
    server.files["/a.json"] = JSON_ROWS
    files = [{"path": "a.json", "rows": 700, "sha256": sha(JSON_ROWS)}]
    assert run(tmp_path, monkeypatch, files, url=server.url) == 0
    if recorded:
        (tmp_path / "demo" / "a.json").write_bytes(JSON_ROWS[:-9])
    else:
        (tmp_path / "demo" / "SOURCE.json").unlink()
    assert run(tmp_path, monkeypatch, files, url=server.url) == 0
    assert len(server.seen) == (2 if recorded else 1)
    assert (tmp_path / "demo" / "a.json").read_bytes() == JSON_ROWS


def test_a_broken_off_download_goes_on_where_it_stopped(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["/a.json"] = JSON_ROWS
    server.faults = [("break", 1000), ("status", 503), ("break", 500)]
    files = [{"path": "a.json", "sha256": sha(JSON_ROWS)}]
    assert run(tmp_path, monkeypatch, files, url=server.url) == 0
    assert [seen.get("Range") for _, seen in server.seen] == [
        None, "bytes=1000-", "bytes=1000-", "bytes=1500-",
    ]  # fmt: skip
    assert (tmp_path / "demo" / "a.json").read_bytes() == JSON_ROWS


def test_too_many_breaks_keep_the_part_for_the_next_run(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    server.files["/a.json"] = JSON_ROWS
    server.faults = [("break", 100)] * 4
    assert run(tmp_path, monkeypatch, [{"path": "a.json"}], url=server.url) == 1
    assert "broke off after 400 bytes" in capsys.readouterr().err
    assert (tmp_path / "demo/.fetching/a.json.part").read_bytes() == JSON_ROWS[:400]
    assert not (tmp_path / "demo" / "a.json").exists()
    assert run(tmp_path, monkeypatch, [{"path": "a.json"}], url=server.url) == 0
    assert server.seen[-1][1]["Range"] == "bytes=400-"
    assert (tmp_path / "demo" / "a.json").read_bytes() == JSON_ROWS


def test_a_killed_download_goes_on_in_the_next_run(server: Server, tmp_path: Path) -> None:
    data = b'{"q": "why?"}\n' * 40_000
    server.files["/a.jsonl"], server.faults = data, [("hang", 300_000)]
    table = write_table(tmp_path, [{"path": "a.jsonl", "rows": 40_000}], url=server.url)
    arguments = ("demo", "--to", tmp_path, "--table", table)
    process = start_script("datasets/prepare.py", *arguments, env={"NO_PROXY": "*"})
    part = tmp_path / "demo/.fetching/a.jsonl.part"
    wait_until(lambda: part.exists() and part.stat().st_size > 100_000, process)
    process.kill()
    process.communicate()
    have = part.stat().st_size
    assert 100_000 < have < 300_001
    result = run_script("datasets/prepare.py", *arguments, env={"NO_PROXY": "*"})
    assert result.returncode == 0 and server.seen[-1][1]["Range"] == f"bytes={have}-"
    assert (tmp_path / "demo" / "a.jsonl").read_bytes() == data


def test_two_versions_of_a_file_are_never_joined(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["/a.json"] = JSON_ROWS
    server.faults = [("break", 1000)] * 4
    assert run(tmp_path, monkeypatch, [{"path": "a.json"}], url=server.url) == 1
    newer = json.dumps(ROWS[:50]).encode()
    server.files["/a.json"] = newer
    assert run(tmp_path, monkeypatch, [{"path": "a.json"}], url=server.url) == 0
    assert (tmp_path / "demo" / "a.json").read_bytes() == newer


@pytest.mark.parametrize("etags", [True, False])
def test_a_part_longer_than_the_file_or_without_a_version_begins_again(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, etags: bool
) -> None:
    server.files["/a.json"], server.etags = JSON_ROWS, etags
    part = tmp_path / "demo/.fetching/a.json.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(JSON_ROWS + b" " * 10)
    if etags:
        part.with_name("a.json.part.etag").write_text(f'"{sha(JSON_ROWS)[:16]}"')
    assert run(tmp_path, monkeypatch, [{"path": "a.json", "rows": 700}], url=server.url) == 0
    assert (tmp_path / "demo" / "a.json").read_bytes() == JSON_ROWS


# --- what is wrong is said and not kept -------------------------------------------------------


def test_wrong_hash_and_wrong_row_count_are_not_kept(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    server.files["/a.json"] = JSON_ROWS
    wrong_hash = [{"path": "a.json", "sha256": "0" * 64}]
    assert run(tmp_path, monkeypatch, wrong_hash, url=server.url) == 1
    problem = capsys.readouterr().err
    assert sha(JSON_ROWS) in problem and "0" * 64 in problem and "http://h" in problem
    assert run(tmp_path, monkeypatch, [{"path": "a.json", "rows": 701}], url=server.url) == 1
    assert "a.json has 700 rows, the table says 701" in capsys.readouterr().err
    assert list((tmp_path / "demo").iterdir()) == []


def test_a_file_of_another_kind_is_not_kept(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    server.files["/a.jsonl"] = b"<html>please sign in</html>\n"
    assert run(tmp_path, monkeypatch, [{"path": "a.jsonl"}], url=server.url) == 1
    assert "a.jsonl cannot be read" in capsys.readouterr().err
    assert list((tmp_path / "demo").iterdir()) == []


def test_without_a_pinned_hash_the_hash_is_said_and_recorded(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    server.files["/a.json"] = JSON_ROWS
    assert run(tmp_path, monkeypatch, [{"path": "a.json"}], url=server.url) == 0
    said = f"not pinned: hash of what was fetched is {sha(JSON_ROWS)}"
    assert said in capsys.readouterr().out
    entry = json.loads((tmp_path / "demo" / "SOURCE.json").read_text())["files"]["a.json"]
    assert entry["sha256"] == sha(JSON_ROWS) and entry["pinned"] is False
    server.files.clear()
    assert run(tmp_path, monkeypatch, [{"path": "a.json"}], url=server.url) == 0  # kept


@pytest.mark.parametrize("status", [404, 403])
def test_missing_or_refused_is_said_at_once(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, status: int
) -> None:
    server.faults = [("status", status)]
    assert run(tmp_path, monkeypatch, [{"path": "a.json"}], url=server.url) == 1
    problem = capsys.readouterr().err
    assert f"HTTP {status}" in problem and "see http://h" in problem
    assert len(server.seen) == 1


def test_a_place_that_cannot_be_written_is_said(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    server.files["/a.json"] = JSON_ROWS
    (tmp_path / "demo").write_text("a file where the folder should be")
    assert run(tmp_path, monkeypatch, [{"path": "a.json"}], url=server.url) == 1
    assert "demo" in capsys.readouterr().err


def test_no_network_is_said_clearly(tmp_path: Path) -> None:
    table = tmp_path / "table.json"
    row = {"title": "t", "domain": "d", "licence": "l", "citation": "c", "home": "h",
           "url": "http://127.0.0.1:9", "files": [{"path": "a.json"}]}  # fmt: skip
    table.write_text(json.dumps({"one": row, "two": row}))
    arguments = ("one", "two", "--to", tmp_path, "--table", table)
    result = run_script("datasets/prepare.py", *arguments, env={"NO_PROXY": "*"})
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert result.stderr.count("cannot reach 127.0.0.1:9") == 2  # one failure stops no other set
    assert "no network here" in result.stderr
    assert "ready: none; failed: one, two" in result.stdout


def test_mistakes_in_the_command(tmp_path: Path) -> None:
    unknown = run_script("datasets/prepare.py", "svmp")
    assert unknown.returncode == 2 and 'did you mean "svamp"?' in unknown.stderr
    nothing = run_script("datasets/prepare.py")
    assert nothing.returncode == 2 and "name the sets to fetch" in nothing.stderr
    (tmp_path / "t.json").write_text('{"a": {"title": "t"}}')
    broken = run_script("datasets/prepare.py", "--list", "--table", tmp_path / "t.json")
    assert broken.returncode == 2 and "cannot be read" in broken.stderr
    assert "Traceback" not in unknown.stderr + nothing.stderr + broken.stderr


# --- the hub ----------------------------------------------------------------------------------


def test_the_hub_mirror_a_pattern_and_an_unpinned_revision(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    shards = {f"data/train-{n}.jsonl": b'{"q": 1}\n' * (n + 2) for n in range(3)}
    for name, data in shards.items():
        server.files[f"/datasets/me/set/resolve/abc/{name}"] = data
    siblings = [{"rfilename": name} for name in ("README.md", "data/train-../x", *shards)]
    info = {"id": "me/set", "sha": "abc", "siblings": siblings}
    for address in ("/api/datasets/me/set", "/api/datasets/me/set/revision/abc"):
        server.files[address] = json.dumps(info).encode()
    files = [{"path": "data/train-*", "rows": 9}]
    assert run(tmp_path, monkeypatch, files, hub="me/set") == 0
    assert "not pinned: the hub's revision is abc" in capsys.readouterr().out
    for name, data in shards.items():
        assert (tmp_path / "demo" / name).read_bytes() == data
    asked = len(server.seen)
    server.files["/api/datasets/me/set"] = json.dumps({**info, "sha": "newer"}).encode()
    assert run(tmp_path, monkeypatch, files, hub="me/set") == 0  # stays at what it has
    assert len(server.seen) == asked
    assert run(tmp_path, monkeypatch, [{"path": "data/train-*", "rows": 8}], hub="me/set") == 1
    assert "has 9 rows, the table says 8" in capsys.readouterr().err


def test_a_gated_set_needs_a_token_which_no_other_host_sees(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    files, more = [{"path": "a.csv", "rows": 2}], {"hub": "me/set", "revision": "r"}
    assert run(tmp_path, monkeypatch, files, access="token", **more) == 1
    assert "HF_TOKEN" in capsys.readouterr().err and server.seen == []
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    server.faults = [("status", 403)]
    assert run(tmp_path, monkeypatch, files, access="token", **more) == 1
    assert "accept its terms" in capsys.readouterr().err
    store = server.url.replace("127.0.0.1", "localhost") + "/store/a.csv?signed=1"
    server.redirects["/datasets/me/set/resolve/r/a.csv"] = store
    server.files["/store/a.csv?signed=1"] = b'Question,Answer\n"two\nlines",1\nbb,2\n'
    assert run(tmp_path, monkeypatch, files, access="token", **more) == 0
    asked = [(path, {k.lower(): v for k, v in headers.items()}) for path, headers in server.seen]
    assert asked[1][1]["authorization"] == "Bearer hf_secret" and asked[-1][0].startswith("/store")
    assert not any("authorization" in headers for path, headers in asked if "store" in path)
    assert not any("hf_secret" in path.read_text() for path in (tmp_path / "demo").iterdir())


def test_user_and_password_of_a_mirror_are_shown_nowhere(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    mirror = server.url.replace("://", "://bob:canary-1@")
    monkeypatch.setenv("HF_ENDPOINT", mirror)
    server.files["/datasets/me/set/resolve/r/a.json"] = JSON_ROWS
    more = {"hub": "me/set", "revision": "r"}
    for files, status in (([{"path": "a.json"}], 0), ([{"path": "no.json"}], 1)):
        assert run(tmp_path, monkeypatch, files, **more) == status
    asked = len(server.seen)
    assert run(tmp_path, monkeypatch, [{"path": "a.json"}], **more) == 0  # known again
    assert len(server.seen) == asked
    record = (tmp_path / "demo" / "SOURCE.json").read_text()
    said = "".join(capsys.readouterr())
    assert "***@127.0.0.1" in record and "***@127.0.0.1" in said
    assert "canary" not in record + said


def test_a_set_fetched_by_hand_is_explained_then_recognised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    more = {"access": "manual", "how": "register at http://h and put it"}
    assert run(tmp_path, monkeypatch, [{"path": "*.json"}], **more) == 1
    problem = capsys.readouterr().err
    assert "register at http://h" in problem and str(tmp_path / "demo") in problem
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "training12b.json").write_text('{"questions": [{"id": 1}, {"id": 2}]}')
    assert run(tmp_path, monkeypatch, [{"path": "*.json"}], **more) == 0
    assert "found training12b.json, 2 rows" in capsys.readouterr().out


# --- archives and rows ------------------------------------------------------------------------


def _zip(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as pack:
        for name, data in members.items():
            pack.writestr(name, data)
    return buffer.getvalue()


def _tar(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as pack:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            pack.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@pytest.mark.parametrize("make", [_zip, _tar])
def test_members_of_an_archive_are_unpacked_into_the_folder_and_kept(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, make
) -> None:
    statements = b"statement,label\nCopper conducts.,1\nIce is hot.,0\n"
    server.files["/a.pack"] = make({
        "set/animals_true_false.csv": statements, "../../facts_true_false.csv": statements,
        "__MACOSX/._animals_true_false.csv": b"\0", "set/readme.txt": b"no",
    })  # fmt: skip
    files = [{"path": "a.pack", "members": "*_true_false.csv", "rows": 4}]
    assert run(tmp_path, monkeypatch, files, url=server.url) == 0
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == [
        "SOURCE.json", "animals_true_false.csv", "facts_true_false.csv",
    ]  # fmt: skip
    assert not (tmp_path.parent / "facts_true_false.csv").exists()
    assert run(tmp_path, monkeypatch, files, url=server.url) == 0
    assert len(server.seen) == 1 and "4 rows" in capsys.readouterr().out
    (tmp_path / "demo" / "facts_true_false.csv").unlink()
    assert run(tmp_path, monkeypatch, files, url=server.url) == 0
    assert len(server.seen) == 2 and (tmp_path / "demo" / "facts_true_false.csv").exists()


@pytest.mark.parametrize("whole", [True, False])
def test_a_broken_archive_and_one_without_the_file_are_said(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, whole: bool
) -> None:
    data = _tar({"set/other.json": random.Random(0).randbytes(50_000)})
    server.files["/a.tar.gz"] = data if whole else data[: len(data) // 2]
    files = [{"path": "a.tar.gz", "members": "set/a.json" if whole else "set/*"}]
    assert run(tmp_path, monkeypatch, files, url=server.url) == 1
    problem = capsys.readouterr().err
    assert ('no file "set/a.json"' if whole else "not a readable archive") in problem
    assert list((tmp_path / "demo").iterdir()) == []


SQUAD = {"version": "v2.0", "data": [
    {"title": "a", "paragraphs": [{"context": "c", "qas": [{"id": 1}, {"id": 2}]},
                                  {"context": "c", "qas": [{"id": 3}]}]},
    {"title": "b", "paragraphs": [{"context": "c", "qas": [{"id": 4}]}]}]}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        ("a.json", '[{"a": 1}, {"a": 2}]', 2),
        ("a.json", '{"Data": [1, 2, 3]}', 3),
        ("a.json", json.dumps(SQUAD), 4),
        ("a.json", '{"a": 1}\n{"a": 2}\n\n{"a": 3}\n', 3),
        ("a.jsonl", '{"a": 1}\n\n{"a": 2}', 2),
        ("a.csv", 'q,a\r\n"x ""y""\r\nz",1\r\nb,2\r\n', 2),
        ("a.txt", "what?", None),
    ],
)
def test_count_rows(tmp_path: Path, name: str, content: str, rows: int | None) -> None:
    (tmp_path / name).write_text(content, newline="")
    assert fetching.count_rows(tmp_path / name) == rows


def test_count_rows_of_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"q": list(range(1234))}), path)
    assert fetching.count_rows(path) == 1234
    path.write_bytes(b"PAR1 not")
    with pytest.raises(fetching.FetchError, match="a.parquet cannot be read"):
        fetching.count_rows(path)


# --- the shipped table ------------------------------------------------------------------------


def test_the_table_names_every_set_with_its_terms_and_only_whole_pins() -> None:
    table = prepare.read_table(ROOT / "datasets" / "sources.json")
    assert set(table) == {
        "svamp", "coqa", "triviaqa", "triviaqa-unfiltered", "commonsenseqa", "belebele", "math",
        "math-500", "gsm8k", "truthfulqa", "gpqa", "squad", "squad_v2", "nq_open", "bioasq",
        "halueval", "ragtruth", "defan", "true_false", "synthweb", "ipw", "arc", "mmlu",
        "hellaswag", "sciq", "popqa", "truthfulqa-multi", "truthfulqa-uhura", "truthfulqa-okapi",
        "triviaqa-evidence",
    }  # fmt: skip
    for source in table.values():
        assert source.files and source.licence and source.citation and source.domain
        assert source.home.startswith(("http://", "https://"))
        assert (source.access == "manual") != bool(source.url or source.hub)
        assert source.revision is None or len(source.revision) == 40
        if source.url:
            assert ("{revision}" in source.url) == bool(source.revision)
        for file in source.files:
            assert file.sha256 is None or (len(file.sha256) == 64 and int(file.sha256, 16))
            assert "*" not in file.path or source.hub or source.access == "manual"
            assert not (file.sha256 and source.url and not source.revision and file.rows is None)
    # the sizes that the sets' papers give
    assert sum(file.rows for file in table["math"].files) == 12500
    assert sum(file.rows for file in table["coqa"].files) == 7699


def test_list_shows_name_domain_licence_size_rows_and_citation() -> None:
    result = run_script("datasets/prepare.py", "--list")
    assert result.returncode == 0 and result.stderr == ""
    gsm8k = result.stdout.split("gsm8k: ")[1].split("\n    note")[0]
    for part in ("arithmetic word problems", "MIT", "4.9 MB", "8,792", "arXiv 2110.14168"):
        assert part in gsm8k
    assert "needs HF_TOKEN" in result.stdout.split("gpqa: ")[1].split("citation")[0]


def test_a_table_that_is_none_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text("[1]")
    with pytest.raises(UserError, match="cannot be read"):
        prepare.read_table(tmp_path / "t.json")
