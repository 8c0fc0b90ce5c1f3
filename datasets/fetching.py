"""Bring one file here, by pooch from a web address or by huggingface_hub from the hub, and look
at it.

A transfer that broke off goes on where it stopped: the hub's library does so by itself, pooch by
the downloader here. Beside the part .etag keeps the server's name for this version of the file, so
that two versions are never joined. Archives are opened here: pooch would let a member of a tar
choose its path.
"""

from __future__ import annotations

import fnmatch
import os
import shutil
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import pooch
import requests
import urllib3
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import GatedRepoError, HTTPError
from huggingface_hub.utils import logging as hub_logging
from tqdm import tqdm

from spikescore.data.fields import BadRow
from spikescore.data.files import is_data, read_rows
from spikescore.errors import UserError

ATTEMPTS = 4
TIMEOUT = 30.0
"""Seconds without an answer, or without a byte, after which a connection counts as lost."""
WAIT = 1.0
"""Seconds before the second attempt; each further one waits twice as long."""
BUSY = (429, 500, 502, 503, 504)
"""HTTP statuses that mean "later", not "no"."""


class FetchError(Exception):
    """A file could not be fetched or is not what it should be; the message says what to do."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


# --- from a web address -----------------------------------------------------------------------


def from_url(url: str, target: Path) -> None:
    """Fetch `url` into the file `target`; FetchError (`status`: the HTTP status, if any)."""
    pooch.get_logger().setLevel("WARNING")
    pooch.retrieve(url, None, target.name, target.parent, downloader=_resume)


def _resume(url: str, output_file: str, _: object) -> None:
    """A downloader for pooch: up to ATTEMPTS transfers, each from where the one before ended."""
    part = Path(output_file).parent / f"{PurePosixPath(url).name}.part"
    for attempt in range(ATTEMPTS):
        time.sleep(WAIT * 2 ** (attempt - 1) if attempt else 0)
        try:
            _transfer(url, part)
        except (requests.RequestException, urllib3.exceptions.HTTPError) as broken:
            response = getattr(broken, "response", None)
            status = response.status_code if response is not None else None
            if status == 416:  # more bytes here than there: begin again
                part.unlink()
            elif status and status not in BUSY:
                raise FetchError(f"{url}: HTTP {status} {response.reason}", status) from None
            problem = broken
        else:
            os.replace(part, output_file)
            return
    if not part.exists():
        reason = str(problem).rpartition("Caused by ")[2].strip("()")
        host = urlsplit(url).netloc
        raise FetchError(f"cannot reach {host} ({reason}): {_NO_NETWORK}") from problem
    raise FetchError(
        f"{url}: the connection broke off after {part.stat().st_size:,} bytes ({problem}; "
        f"{ATTEMPTS} attempts); what has arrived is kept, run the same command to go on"
    ) from problem


_NO_NETWORK = (
    "no network here, or a proxy is needed (HTTPS_PROXY), or for the hub a mirror (HF_ENDPOINT); "
    "or run this command on a machine with a network and copy the set's folder here"
)


def _transfer(url: str, part: Path) -> None:
    etag = part.with_name(f"{part.name}.etag")
    have = part.stat().st_size if part.exists() and etag.exists() else 0
    # compressed on the way, the bytes could neither be counted nor resumed
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": etag.read_text(encoding="utf-8")}
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        response.raise_for_status()
        have = have if response.status_code == 206 else 0
        length = response.headers.get("Content-Length", "")
        total = have + int(length) if length.isdigit() else None
        with part.open("ab" if have else "wb") as file, _bar(url, have, total) as bar:
            if not have:
                _keep_etag(etag, response.headers.get("ETag"))
            while block := response.raw.read1(1 << 16):  # what is there, so that a break loses none
                file.write(block)
                bar.update(len(block))
            if total is not None and file.tell() < total:
                raise requests.ConnectionError("the connection closed")


def _bar(url: str, have: int, total: int | None) -> tqdm:
    return tqdm(initial=have, total=total, unit="B", unit_scale=True, leave=False,
                desc=PurePosixPath(url).name, disable=not sys.stderr.isatty())  # fmt: skip


def _keep_etag(path: Path, etag: str | None) -> None:
    if etag and etag.startswith('"'):  # a weak one (W/...) does not vouch for the bytes
        path.write_text(etag, encoding="utf-8")
    else:
        path.unlink(missing_ok=True)


# --- from the hub -----------------------------------------------------------------------------


def hub_files(hub: str, revision: str | None, token: str | None) -> tuple[str, list[str]]:
    """Return the commit of a data set's revision (None: the newest) and the files it holds."""
    try:
        info = HfApi(endpoint(), token=token or False).dataset_info(hub, revision=revision)
    except (HTTPError, OSError) as error:
        raise _refused(hub, error) from error
    return str(info.sha), sorted(str(entry.rfilename) for entry in info.siblings or ())


def from_hub(hub: str, path: str, revision: str, folder: Path, token: str | None) -> None:
    """Fetch a file of a data set on the hub to its path below a folder; FetchError."""
    hub_logging.set_verbosity_error()  # each of its attempts would be told
    try:
        hf_hub_download(hub, path, repo_type="dataset", revision=revision, local_dir=folder,
                        token=token or False, endpoint=endpoint())  # fmt: skip
    except (HTTPError, OSError) as error:
        raise _refused(f"{hub}/{path}", error) from error


def endpoint() -> str:
    """Return the hub's address: HF_ENDPOINT, or the public one."""
    return os.environ.get("HF_ENDPOINT", "").strip().rstrip("/") or "https://huggingface.co"


def _refused(what: str, error: Exception) -> FetchError:
    if isinstance(error, OSError) and error.errno:  # a full disk is no fault of the hub
        return FetchError(str(error))
    cause: BaseException | None = error
    while cause is not None and getattr(cause, "response", None) is None:
        cause = cause.__cause__  # "not found locally" hides what the hub said
    status = cause.response.status_code if cause is not None else None
    status = 403 if isinstance(error, GatedRepoError) else status
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if status:
        return FetchError(f"{endpoint()}, {what}: HTTP {status} ({reason})", status)
    return FetchError(f"cannot reach {endpoint()} for {what} ({reason}): {_NO_NETWORK}")


# --- looking at files -------------------------------------------------------------------------


def count_rows(path: Path) -> int | None:
    """Return the number of rows of a data file, as the suite reads them; None for another kind.

    In SQuAD's nested form a row is a question. Raises FetchError for a broken file.
    """
    if not is_data(path):
        return None
    count = 0
    try:
        for where, row in read_rows(path):
            if isinstance(row, BadRow):
                raise FetchError(f"{path.name} cannot be read ({where}, {row})")
            count += _questions(row)
    except UserError as error:
        raise FetchError(f"{path.name} cannot be read ({error})") from error
    return count


def _questions(row: Any) -> int:
    articles = row.get("paragraphs") if isinstance(row, dict) else None
    if not isinstance(articles, list):
        return 1
    return sum(len(one["qas"]) for one in articles if isinstance(one, dict) and "qas" in one)


def unpack(archive: Path, pattern: str, folder: Path) -> list[Path]:
    """Write each member of a zip or tar that fits the pattern into `folder`; return the files.

    Members go by their last name, whatever path the archive gives them. Raises FetchError when the
    archive is broken or no member fits.
    """
    found = []
    try:
        for name, member in _members(archive):
            last = PurePosixPath(name).name
            if fnmatch.fnmatch(name, pattern) and not last.startswith("."):
                with (folder / last).open("wb") as file:
                    shutil.copyfileobj(member, file)
                found.append(folder / last)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise FetchError(f"{archive.name} is not a readable archive ({error})") from error
    if not found:
        raise FetchError(f'{archive.name} holds no file "{pattern}"')
    return found


def _members(archive: Path) -> Iterator[tuple[str, Any]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as pack:
            for entry in pack.infolist():
                if not entry.is_dir():
                    yield entry.filename, pack.open(entry)
    else:
        with tarfile.open(archive) as pack:
            for entry in pack:
                if entry.isfile():
                    yield entry.name, pack.extractfile(entry)
