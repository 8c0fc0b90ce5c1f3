"""Fetch the real data sets from their publishers, in the files that the publishers ship.

    python datasets/prepare.py --list
    python datasets/prepare.py svamp commonsenseqa math-500
    HF_TOKEN=... python datasets/prepare.py gpqa

Files go to datasets/NAME/, from the revisions and with the SHA-256 and row counts of the table
sources.json beside this script; nothing that fails a check is kept. Where the table fixes no hash
the script says so, and SOURCE.json in the set's folder records what came. Run the same command
again at any time: finished files are kept, a broken-off download goes on. HF_ENDPOINT names another
hub, HF_TOKEN signs you in. Each set has its own licence: read it before you pass anything on.

Exit status: 0 all there; 1 a set could not be fetched or checked; 2 a mistake in the command.
"""

from __future__ import annotations

import argparse
import difflib
import fnmatch
import json
import os
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pooch

HERE = Path(__file__).resolve().parent
# The script lies one folder below the project root, where the spikescore package is.
sys.path.insert(0, str(HERE.parent))

import fetching  # noqa: E402
from fetching import FetchError, count_rows  # noqa: E402

from spikescore.errors import UserError, redacted, run_main  # noqa: E402
from spikescore.files import write_json  # noqa: E402

RECORD = "SOURCE.json"
"""What was fetched, from where: the one file of a set's folder that is no data."""
ARRIVING = ".fetching"
"""Where a set's files lie until they are whole and checked; it goes when all are there."""


# --- the table of sets ------------------------------------------------------------------------


@dataclass(frozen=True)
class SourceFile:
    """One file of a set: `path` below the set's URL, and what is known of it (None: not known).

    `path` may be a pattern (data/train-*) on the hub. `members`: the file is an archive, of which
    the members that fit this pattern are kept; then `rows` is theirs. `bytes` is only shown.
    """

    path: str
    sha256: str | None = None
    rows: int | None = None
    bytes: int | None = None
    members: str | None = None


@dataclass(frozen=True)
class Source:
    """One set: where its files lie (`url`, or a data set `hub` = owner/name), and its terms.

    `access`: open | token (HF_TOKEN, once its terms are accepted) | manual (`how` says how). A
    hash, a revision or a count that is not known for certain is left out, never guessed.
    """

    name: str
    title: str
    domain: str
    licence: str
    citation: str
    home: str
    files: tuple[SourceFile, ...]
    url: str | None = None
    hub: str | None = None
    revision: str | None = None
    access: str = "open"
    how: str = ""
    note: str = ""


def read_table(path: Path) -> dict[str, Source]:
    """Return the sets of a table by name; UserError when it is not a table of this form."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        return {
            name: Source(
                name, **{**row, "files": tuple(SourceFile(**file) for file in row["files"])}
            )
            for name, row in table.items()
        }
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise UserError(f'table "{path}" cannot be read ({error!r})') from error


def listing(table: dict[str, Source]) -> str:
    """Return the table for the eye: a few lines for each set."""
    lines = []
    for source in table.values():
        rows = total(file.rows for file in source.files)
        size = total(file.bytes for file in source.files)
        terms = {"token": "needs HF_TOKEN", "manual": "by hand"}
        access = terms.get(source.access, "open")
        lines += [
            f"{source.name}: {source.title}",
            f"    domain    {source.domain}",
            f"    licence   {source.licence}",
            f"    size      {f'{size / 1e6:,.1f} MB' if size else 'not known beforehand'}, "
            f"rows {f'{rows:,}' if rows else 'not known beforehand'}, access: {access}",
            f"    citation  {source.citation}",
            f"    home      {source.home}",
            *([f"    note      {source.note}"] if source.note else []),
        ]
    return "\n".join(lines)


def total(numbers: Iterable[int | None]) -> int | None:
    """Return the sum, None when one of the numbers is not known."""
    numbers = list(numbers)
    return None if None in numbers else sum(numbers)


# --- one set ----------------------------------------------------------------------------------


@dataclass
class Folder:
    """A set's folder and what lies in it: {path: {url, sha256, bytes, rows, pinned}}, as JSON."""

    path: Path
    source: Source
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    revision: str | None = None

    def __post_init__(self) -> None:
        try:
            content = json.loads((self.path / RECORD).read_text(encoding="utf-8"))
            self.files, self.revision = dict(content["files"]), content["revision"]
        except (OSError, ValueError, KeyError, TypeError):
            pass  # missing or damaged: the files are looked at again

    def note(self, path: str, url: str, rows: int | None, *, pinned: bool) -> None:
        """Record a file that lies at its place, and write the record."""
        file, source = self.path / path, self.source
        self.files[path] = {
            "url": redacted(url), "sha256": pooch.file_hash(str(file)),
            "bytes": file.stat().st_size, "rows": rows, "pinned": pinned,
        }  # fmt: skip
        write_json(self.path / RECORD, {
            "name": source.name, "home": source.home, "licence": source.licence,
            "citation": source.citation, "revision": self.revision,
            "written_at": datetime.now(UTC).isoformat(timespec="seconds"), "files": self.files,
        })  # fmt: skip

    def intact(self, url: str) -> list[str]:
        """Return the paths that came from `url`, or none when one of them is gone or changed."""
        paths = [path for path, entry in self.files.items() if entry.get("url") == redacted(url)]
        return (
            paths if all(self.holds(path, self.files[path].get("sha256")) for path in paths) else []
        )

    def holds(self, path: str, sha256: str | None) -> bool:
        """True when the file is there with this hash."""
        file = self.path / path
        return file.is_file() and pooch.file_hash(str(file)) == sha256


def prepare(source: Source, path: Path) -> None:
    """Bring a set's folder to what the table says, fetching only what is not there.

    Prints a line for each file. Raises FetchError; what was fetched before it is kept.
    """
    folder = Folder(path, source)
    if source.access == "manual":
        _look_for(source, folder)
        return
    token = os.environ.get("HF_TOKEN", "").strip() or None
    if source.access == "token" and not token:
        raise FetchError(_gate(source))
    try:
        for file in source.files:
            paths = _paths(file, folder, token)
            rows = total(_bring(file, path, folder, token) for path in paths)
            _check_rows(file.path, rows, file.rows)
    except FetchError as refused:
        if refused.status in (401, 403) and source.access == "token":
            raise FetchError(f"{refused}. {_gate(source)}", refused.status) from refused
        if refused.status in (401, 403, 404, 410):
            why = f"the publisher moved, closed or removed it, see {source.home}"
            raise FetchError(f"{refused}: {why}", refused.status) from refused
        raise
    finally:
        arriving = [*(path / ARRIVING).rglob("*.part"), *(path / ARRIVING).rglob("*.incomplete")]
        if not arriving:  # else the next run goes on from there
            shutil.rmtree(path / ARRIVING, ignore_errors=True)


def _paths(file: SourceFile, folder: Folder, token: str | None) -> list[str]:
    """Return the paths that a table entry stands for, and settle the revision.

    A hub's set that the table does not pin stays at the revision that was fetched first.
    """
    source, wanted = folder.source, folder.source.revision or folder.revision
    known = sorted(path for path in folder.files if fnmatch.fnmatch(path, file.path))
    whole = known and total(folder.files[path]["rows"] for path in known) == file.rows
    if not source.hub or (wanted and ("*" not in file.path or whole)):
        folder.revision = wanted
        return known if whole and "*" in file.path else [file.path]
    folder.revision, names = fetching.hub_files(source.hub, wanted, token)
    if not wanted:
        print(f"{source.name}: not pinned: the hub's revision is {folder.revision}")
    paths = [name for name in names if fnmatch.fnmatch(name, file.path) and ".." not in name]
    if not paths:
        raise FetchError(f'{source.hub} holds no file "{file.path}"; see {source.home}')
    return paths


def _bring(file: SourceFile, path: str, folder: Folder, token: str | None) -> int | None:
    """Make sure that one file is there and right; return its rows."""
    source = folder.source
    hub = f"{fetching.endpoint()}/datasets/{source.hub}/resolve/{{revision}}"
    url = f"{(hub if source.hub else source.url).format(revision=folder.revision)}/{path}"
    kept = folder.intact(url)
    if not kept and not file.members and file.sha256 and folder.holds(path, file.sha256):
        folder.note(path, url, count_rows(folder.path / path), pinned=True)  # brought by hand
        kept = [path]
    if kept and (not file.sha256 or file.members or folder.files[path]["sha256"] == file.sha256):
        rows = total(folder.files[one]["rows"] for one in kept)
        print(f"{source.name}: kept {', '.join(kept)}, {_rows_text(rows)}")
        return rows
    arriving = folder.path / ARRIVING
    arrived = arriving / path
    arrived.parent.mkdir(parents=True, exist_ok=True)
    if source.hub:
        fetching.from_hub(source.hub, path, str(folder.revision), arriving, token)
    else:
        fetching.from_url(url, arrived)
    digest = pooch.file_hash(str(arrived))
    if file.sha256 and digest != file.sha256:
        arrived.unlink()
        raise FetchError(
            f"{url}: SHA-256 is {digest}, the table says {file.sha256}: the file was changed at "
            f"its source or on the way; it was not kept. See {source.home}"
        )
    if not file.sha256:
        print(f"{source.name}: {path} is not pinned: hash of what was fetched is {digest}")
    try:
        parts = fetching.unpack(arrived, file.members, arriving) if file.members else [arrived]
        return total([_place(file, part, url, folder) for part in parts])
    finally:
        arrived.unlink(missing_ok=True)


def _place(file: SourceFile, part: Path, url: str, folder: Folder) -> int | None:
    """Check the rows of a finished download and move it to its place; return its rows."""
    path = str(part.relative_to(folder.path / ARRIVING))
    rows = count_rows(part)
    if "*" not in f"{file.path}{file.members or ''}":
        _check_rows(path, rows, file.rows)
    (folder.path / path).parent.mkdir(parents=True, exist_ok=True)
    os.replace(part, folder.path / path)
    folder.note(path, url, rows, pinned=bool(file.sha256))
    print(f"{folder.source.name}: fetched {path}, {_rows_text(rows)}")
    return rows


def _check_rows(name: str, rows: int | None, expected: int | None) -> None:
    if rows is not None and expected is not None and rows != expected:
        raise FetchError(
            f"{name} has {rows:,} rows, the table says {expected:,}: the download is not whole, "
            "or the publisher changed the file; run the command again, or mend the table"
        )


def _rows_text(rows: int | None) -> str:
    return f"{rows:,} rows" if rows is not None else "rows not counted"


def _look_for(source: Source, folder: Folder) -> None:
    """Record the files of a set that is fetched by hand; FetchError says how when there is none."""
    found = sorted(path for path in folder.path.glob(source.files[0].path) if path.name != RECORD)
    if not found:
        raise FetchError(f"cannot be fetched by a script: {source.how} into {folder.path}")
    for file in found:
        rows, path = count_rows(file), str(file.relative_to(folder.path))
        folder.note(path, source.home, rows, pinned=False)
        print(f"{source.name}: found {path}, {_rows_text(rows)}")


def _gate(source: Source) -> str:
    return (
        f"This set is given only to those who accept its terms: sign in at {source.home}, accept "
        "them, make a token with read access (https://huggingface.co/settings/tokens) and run "
        "again with HF_TOKEN set to it"
    )


# --- the command ------------------------------------------------------------------------------


def main() -> int:
    """Fetch the sets named; 1 when one of them could not be had."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", metavar="NAME", nargs="*", help="sets to fetch, see --list")
    parser.add_argument("--list", action="store_true", help="show the sets with their terms")
    parser.add_argument("--to", type=Path, default=HERE, metavar="DIR", help="where NAME/ goes")
    parser.add_argument(
        "--table", type=Path, default=HERE / "sources.json", help="another table of this form"
    )
    arguments = parser.parse_args()
    table = read_table(arguments.table)
    if arguments.list:
        print(listing(table))
        return 0
    if not arguments.names:
        raise UserError(f"name the sets to fetch (--list shows them): {', '.join(table)}")
    for name in arguments.names:
        if name not in table:
            near = difflib.get_close_matches(name, table, n=1)
            hint = f'did you mean "{near[0]}"?' if near else "--list shows the sets"
            raise UserError(f'there is no set "{name}"; {hint}')
    failed = []
    for name in dict.fromkeys(arguments.names):
        try:
            prepare(table[name], arguments.to / name)
        except (FetchError, OSError) as error:  # OSError: the disk is full or read-only
            failed.append(name)
            print(redacted(f"error: {name}: {error}"), file=sys.stderr)
    ready = [name for name in dict.fromkeys(arguments.names) if name not in failed]
    print(
        f"ready: {', '.join(ready) or 'none'}" + (f"; failed: {', '.join(failed)}" * bool(failed))
    )
    return int(bool(failed))


if __name__ == "__main__":
    run_main(main)
