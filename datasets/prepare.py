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
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
# The script lies one folder below the project root, where the spikescore package is.
sys.path.insert(0, str(HERE.parent))

from catalogue import Source, SourceFile, listing, read_table, total  # noqa: E402
from fetching import FetchError, count_rows, download, get_json, sha256_of, unpack  # noqa: E402

from spikescore.errors import UserError, run_main  # noqa: E402
from spikescore.files import write_json  # noqa: E402

RECORD = "SOURCE.json"
"""What was fetched, from where: the one file of a set's folder that is no data."""


@dataclass
class Record:
    """What lies in a set's folder: {path: {url, sha256, bytes, rows, pinned}}, kept as JSON."""

    path: Path
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    revision: str | None = None

    @classmethod
    def read(cls, folder: Path) -> Record:
        path = folder / RECORD
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return cls(path, dict(content["files"]), content["revision"])
        except (OSError, ValueError, KeyError, TypeError):
            return cls(path)  # missing or damaged: the files are looked at again

    def write(self, source: Source) -> None:
        content = {
            "name": source.name, "home": source.home, "licence": source.licence,
            "citation": source.citation, "revision": self.revision,
            "written_at": datetime.now(UTC).isoformat(timespec="seconds"), "files": self.files,
        }  # fmt: skip
        write_json(self.path, content)

    def intact(self, url: str) -> list[str]:
        """Return the paths that came from `url`, or none when one of them is gone or changed."""
        paths = [path for path, entry in self.files.items() if entry.get("url") == url]
        for path in paths:
            file = self.path.parent / path
            if not file.is_file() or sha256_of(file) != self.files[path].get("sha256"):
                return []
        return paths


# --- one set ----------------------------------------------------------------------------------


def prepare(source: Source, folder: Path) -> None:
    """Bring a set's folder to what the table says, fetching only what is not there.

    Prints a line for each file. Raises FetchError; what was fetched before it is kept.
    """
    if source.access == "manual":
        _check_by_hand(source, folder)
        return
    token = os.environ.get("HF_TOKEN", "").strip() or None if source.hub else None
    if source.access == "token" and not token:
        raise FetchError(_gate(source))
    record = Record.read(folder)
    try:
        revision = source.revision or record.revision or _head(source, token)
        if revision != record.revision:
            record.revision = revision
        for file in source.files:
            rows = [
                _bring(source, file, path, folder, record, token)
                for path in _paths(source, file, revision, record, token)
            ]
            _check_rows(file.path, total(rows), file.rows)
    except FetchError as refused:
        if refused.status in (401, 403) and source.access == "token":
            raise FetchError(f"{refused}. {_gate(source)}", refused.status) from refused
        if refused.status in (401, 403, 404, 410):
            why = f"the publisher moved, closed or removed it, see {source.home}"
            raise FetchError(f"{refused}: {why}", refused.status) from refused
        raise


def _bring(
    source: Source, file: SourceFile, path: str, folder: Path, record: Record, token: str | None
) -> int | None:
    """Make sure that one file is there and right; return its rows."""
    url = f"{_base(source, record.revision)}/{path}"
    kept = record.intact(url)
    if not kept and not file.members and file.sha256 and (folder / path).is_file():
        if sha256_of(folder / path) == file.sha256:  # brought here by hand
            rows = count_rows(folder / path, path)
            _note(record, source, path, url, folder / path, rows, pinned=True)
            kept = [path]
    if kept and (not file.sha256 or file.members or record.files[path]["sha256"] == file.sha256):
        rows = total(record.files[one]["rows"] for one in kept)
        print(f"{source.name}: kept {', '.join(kept)}, {_rows_text(rows)}")
        return rows
    part = folder / f"{path}.part"
    download(url, part, token=token)
    digest = sha256_of(part)
    if file.sha256 and digest != file.sha256:
        part.unlink()
        raise FetchError(
            f"{url}: SHA-256 is {digest}, the table says {file.sha256}: the file was changed at "
            f"its source or on the way; it was not kept. See {source.home}"
        )
    parts = unpack(part, file.members, folder) if file.members else [(path, part)]
    try:
        counts = [_place(source, file, url, name, one, folder, record) for name, one in parts]
    finally:
        part.unlink(missing_ok=True)
    if not file.sha256:
        print(f"{source.name}: {path} is not pinned: hash of what was fetched is {digest}")
    return total(counts)


def _place(
    source: Source, file: SourceFile, url: str, path: str, part: Path, folder: Path, record: Record
) -> int | None:
    """Check the rows of a finished download and move it to its place; return its rows."""
    rows = count_rows(part, path)
    if "*" not in f"{file.path}{file.members or ''}":
        _check_rows(path, rows, file.rows)
    os.replace(part, folder / path)
    _note(record, source, path, url, folder / path, rows, pinned=bool(file.sha256))
    print(f"{source.name}: fetched {path}, {_rows_text(rows)}")
    return rows


def _note(
    record: Record, source: Source, path: str, url: str, file: Path, rows: int | None, pinned: bool
) -> None:
    record.files[path] = {
        "url": url, "sha256": sha256_of(file), "bytes": file.stat().st_size, "rows": rows,
        "pinned": pinned,
    }  # fmt: skip
    record.write(source)


def _check_rows(name: str, rows: int | None, expected: int | None) -> None:
    if rows is not None and expected is not None and rows != expected:
        raise FetchError(
            f"{name} has {rows:,} rows, the table says {expected:,}: the download is not whole, "
            "or the publisher changed the file; run the command again, or mend the table"
        )


def _rows_text(rows: int | None) -> str:
    return f"{rows:,} rows" if rows is not None else "rows not counted (pip install pyarrow)"


def _check_by_hand(source: Source, folder: Path) -> None:
    pattern = source.files[0].path
    found = sorted(file for file in folder.glob(pattern) if file.name != RECORD)
    if not found:
        raise FetchError(f"cannot be fetched by a script: {source.how} into {folder}")
    record = Record(folder / RECORD)
    for file in found:
        rows = count_rows(file, file.name)
        _note(record, source, file.name, source.home, file, rows, pinned=False)
        print(f"{source.name}: found {file.name}, {_rows_text(rows)}")


# --- the hub ----------------------------------------------------------------------------------


def _hub() -> str:
    return os.environ.get("HF_ENDPOINT", "").strip().rstrip("/") or "https://huggingface.co"


def _base(source: Source, revision: str | None) -> str:
    if source.hub:
        return f"{_hub()}/datasets/{source.hub}/resolve/{revision}"
    return str(source.url).format(revision=revision)


def _head(source: Source, token: str | None) -> str | None:
    """Return the newest revision of a set on the hub that the table does not pin, and say so."""
    if not source.hub:
        return None
    revision = str(get_json(f"{_hub()}/api/datasets/{source.hub}", token=token).get("sha"))
    print(f"{source.name}: not pinned: the hub's revision is {revision}")
    return revision


def _paths(
    source: Source, file: SourceFile, revision: str | None, record: Record, token: str | None
) -> list[str]:
    """Return the paths that a table entry stands for: itself, or what fits its pattern."""
    if "*" not in file.path:
        return [file.path]
    known = sorted(path for path in record.files if fnmatch.fnmatch(path, file.path))
    if known and total(record.files[path]["rows"] for path in known) == file.rows:
        return known  # complete, as the hub need not be asked to know
    content = get_json(f"{_hub()}/api/datasets/{source.hub}/revision/{revision}", token=token)
    names = [str(entry.get("rfilename")) for entry in content.get("siblings", ())]
    paths = sorted(name for name in names if fnmatch.fnmatch(name, file.path) and ".." not in name)
    if not paths:
        raise FetchError(f'{source.hub} holds no file "{file.path}"; see {source.home}')
    return paths


def _gate(source: Source) -> str:
    return (
        f"This set is given only to those who accept its terms: sign in at {source.home}, accept "
        "them, make a token with read access (https://huggingface.co/settings/tokens) and run "
        "again with HF_TOKEN set to it"
    )


# --- the command ------------------------------------------------------------------------------


def main() -> int:
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
            print(f"error: {name}: {error}", file=sys.stderr)
    ready = [name for name in dict.fromkeys(arguments.names) if name not in failed]
    print(
        f"ready: {', '.join(ready) or 'none'}" + (f"; failed: {', '.join(failed)}" * bool(failed))
    )
    return int(bool(failed))


if __name__ == "__main__":
    run_main(main)
