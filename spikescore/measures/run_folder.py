"""The run folder of generate_answers.py: answers, samples, hidden states and uncertainty measures.

    experiment_details.pkl        how the run was made: arguments, model, n_layers, positions, ...
    train_generations.pkl         {question id: entry}, likewise
    validation_generations.pkl
    uncertainty_measures.pkl      per question: entropies and the other measures

An entry holds `question`, `context`, `reference`, `most_likely_answer` (with `accuracy` and two
hidden states of every layer, `[L+1, 1, H]`) and `responses`, the sampled answers. States are FP16
numpy arrays here; the public release's torch tensors are converted when a folder is read. Pickles
are read without running anything they hold, and written atomically.

`emb_last_tok_before_gen` is the state of the last prompt token, `emb_tok_before_eos` that of the
last content token of the answer. For two years the public scripts stored each under the other's
name, so for a folder that does not say which it means, the reading is announced and can be
exchanged.
"""

from __future__ import annotations

import logging
import math
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spikescore.errors import UserError
from spikescore.files import write_atomic
from spikescore.pickles import load_pickle

log = logging.getLogger("spikescore")

Generations = dict[Any, dict[str, Any]]

POSITIONS = {
    "last_tok_bef_gen_embedding": "emb_last_tok_before_gen",
    "last_token_embedding": "emb_tok_before_eos",
}
"""Where a run folder keeps the state of each of our token keys."""
SPLIT_NAMES = ("train", "validation")
MEASURE_KEYS = {
    "train": ("train_uncertainty_measures", "train_ids"),
    "validation": ("uncertainty_measures", "ids"),
}
"""Under which keys of the measures file a split's lists, and the ids they belong to, are kept."""


@dataclass
class RunFolder:
    """One run: how it was made, its questions of both splits, its measures (None: not computed)."""

    path: Path
    details: dict[str, Any]
    train: Generations
    validation: Generations
    measures: dict[str, Any] | None

    @property
    def model(self) -> str | None:
        """The model's name or path, or None where the folder does not tell."""
        name = self.details.get("model") or self.argument("model_name")
        return name if isinstance(name, str) else None

    @property
    def dataset(self) -> str:
        """The data set's name, or the folder's where its details do not tell."""
        return str(self.argument("dataset") or self.path.name)

    def argument(self, name: str) -> Any:
        """Return a command-line argument the run was made with, None where it is not recorded."""
        arguments = self.details.get("args")
        if not isinstance(arguments, dict):  # the public scripts kept the parser's own object
            arguments = getattr(arguments, "__dict__", {})
        return arguments.get(name)

    def items(self) -> Iterator[tuple[str, Any, dict[str, Any]]]:
        """Yield (split name, question id, entry), train first."""
        for split in SPLIT_NAMES:
            for question_id, entry in getattr(self, split).items():
                yield split, question_id, entry

    def measure(self, name: str) -> dict[tuple[str, Any], float]:
        """Return {(split, question id): value} of one measure; NaN where it was not computable.

        Splits that were not measured are absent. Raises UserError when the list does not fit the
        questions.
        """
        found: dict[tuple[str, Any], float] = {}
        for split, (key, ids_key) in MEASURE_KEYS.items():
            values = ((self.measures or {}).get(key) or {}).get(name)
            if values is None:
                continue
            ids = self.measures.get(ids_key) or list(getattr(self, split))
            if len(values) != len(ids):
                raise UserError(
                    f'"{self.path / "uncertainty_measures.pkl"}": {len(values)} values of {name} '
                    f"for {len(ids)} {split} questions; run compute_uncertainty_measures.py again"
                )
            found |= {(split, i): float(v) for i, v in zip(ids, values, strict=True)}
        return found

    def state(self, split: str, question_id: Any, token_key: str) -> np.ndarray | None:
        """Return the most likely answer's state [L+1, H] at a token, None where it has none.

        Raises UserError, naming question and position, when it is not finite or the run folder
        never holds that token.
        """
        position = POSITIONS.get(token_key)
        if position is None:
            raise UserError(
                f'"{self.path}" holds no states of "{token_key}": generate_answers.py keeps '
                f"{' and '.join(POSITIONS)}; give one of them as --token_key"
            )
        stored = getattr(self, split)[question_id]["most_likely_answer"].get(position)
        if stored is None:
            return None
        state = stored.reshape(-1, stored.shape[-1])
        bad = np.flatnonzero(~np.isfinite(state).all(axis=1))
        if bad.size:
            raise UserError(
                f'"{self.path}": question "{question_id}" ({split}), {position}: the state of '
                f"layer {bad[0]} is not finite (NaN, or beyond FP16's range); generate it again, "
                "or take the question out"
            )
        return state


def file_of(folder: str | Path, split: str) -> Path:
    """Return the path of a split's generations in a run folder."""
    return Path(folder) / f"{split}_generations.pkl"


def is_run_folder(folder: str | Path) -> bool:
    """Return whether generate_answers.py has written generations to this folder."""
    return any(file_of(folder, split).exists() for split in SPLIT_NAMES)


def accuracy_of(entry: dict[str, Any]) -> float | None:
    """Return the accuracy of an entry's most likely answer; None when it was not judged."""
    value = entry["most_likely_answer"].get("accuracy")
    return None if value is None or math.isnan(float(value)) else float(value)


# --- reading ----------------------------------------------------------------------------------


def read_run(folder: str | Path, *, swapped_positions: bool = False) -> RunFolder:
    """Read a run folder of generate_answers.py, or of the public release's script.

    `swapped_positions` exchanges the two positions of a folder that does not say which token they
    mean. Raises UserError when the folder or its generations are missing, when a file has another
    structure, and when states differ in shape.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f'folder "{folder}" does not exist; give the folder of generate_answers.py')
    if not is_run_folder(folder):
        raise UserError(
            f'"{folder}" holds neither {file_of(folder, "train").name} nor '
            f"{file_of(folder, 'validation').name}; give the --output_dir of generate_answers.py "
            "(of a run logged by wandb, its folder `files`)"
        )
    details = _read_details(folder)
    generations = {split: read_generations(file_of(folder, split)) for split in SPLIT_NAMES}
    run = RunFolder(folder, details, **generations, measures=_read_measures(folder))
    _settle_positions(run, swapped_positions)
    _require_one_shape(run)
    return run


def _read_details(folder: Path) -> dict[str, Any]:
    path = folder / "experiment_details.pkl"
    if not path.exists():
        return {}
    try:
        details = load_pickle(path)
    except UserError as error:
        # only the model's name is lost with it, and only for folders that others made
        log.warning("%s; going on without it: the probe will not know its model's name", error)
        return {}
    return details if isinstance(details, dict) else {}


def _read_measures(folder: Path) -> dict[str, Any] | None:
    path = folder / "uncertainty_measures.pkl"
    if not path.exists():
        return None
    again = "run compute_uncertainty_measures.py on the folder again"
    measures = load_pickle(path)
    if not isinstance(measures, dict) or not isinstance(measures.get("uncertainty_measures"), dict):
        raise UserError(f'"{path}" is not a file of uncertainty measures; {again}')
    for key, ids_key in MEASURE_KEYS.values():
        lists = measures.get(key) or {}
        if not isinstance(measures.get(ids_key) or [], list) or not isinstance(lists, dict):
            raise UserError(f'"{path}": {key} or {ids_key} is damaged; {again}')
        for name, values in lists.items():
            if not isinstance(values, list) or not all(map(_is_number, values)):
                raise UserError(f'"{path}": {key}, {name} is not a list of numbers; {again}')
    return measures


def read_generations(path: Path) -> Generations:
    """Read a file of questions, {} if there is none; UserError naming question and field."""
    if not path.exists():
        return {}
    content = load_pickle(path)
    if not isinstance(content, dict):
        raise UserError(
            f'"{path}" holds {type(content).__name__}, not questions; make it again with '
            "generate_answers.py"
        )
    for question_id, entry in content.items():
        if damaged := _damage(entry):
            raise UserError(
                f'"{path}": question "{question_id}" {damaged}; make the file again with '
                "generate_answers.py"
            )
        answer = entry["most_likely_answer"]
        for name in (*POSITIONS.values(), "embedding"):
            if answer.get(name) is not None:
                answer[name] = _as_float16(answer[name], f'"{path}": "{question_id}", {name}')
        entry["responses"] = [
            (*r[:2], None if r[2] is None else _as_float16(r[2], str(path)), *r[3:])
            for r in entry.get("responses") or ()
        ]
    return content


def _damage(entry: Any) -> str:
    """What of a question's entry is not what it should be; "" for nothing."""
    for key, kind in {"question": str, "most_likely_answer": dict}.items():
        if not isinstance(entry, dict) or not isinstance(entry.get(key), kind):
            return f"has no {key}"
    answer, responses = entry["most_likely_answer"], entry.get("responses") or ()
    answers = [(answer.get("response"), answer.get("token_log_likelihoods") or ())]
    if not isinstance(responses, list | tuple):
        return "has responses that are no list"
    for place, response in enumerate(responses):
        if not isinstance(response, list | tuple) or len(response) != 4:
            return f"has damaged responses (number {place})"
        answers.append(tuple(response[:2]))
        if not (response[2] is None or _is_state(response[2])):
            return f"has a damaged state (responses, number {place})"
        if not (response[3] is None or _is_number(response[3])):
            return f"has a damaged accuracy (responses, number {place})"
    for place, (text, likelihoods) in enumerate(answers):
        where = f"responses, number {place - 1}" if place else "most_likely_answer"
        listed = isinstance(likelihoods, list | tuple | np.ndarray)
        if not isinstance(text, str) or not listed or not all(map(_is_number, likelihoods)):
            return f"has a damaged text or token_log_likelihoods ({where})"
    if not (answer.get("accuracy") is None or _is_number(answer["accuracy"])):
        return "has a damaged accuracy (most_likely_answer)"
    for name in (*POSITIONS.values(), "embedding"):
        if answer.get(name) is not None and not _is_state(answer[name]):
            return f"has a damaged {name} (most_likely_answer)"
    gold = entry.get("reference", {"answers": {"text": []}})
    for key, kind in (("answers", dict), ("text", list)):
        gold = gold.get(key) if isinstance(gold, dict) else None
        if not isinstance(gold, kind):
            return f"has a damaged reference ({key})"
    texts = {key: entry.get(key) for key in ("context", "domain", "group")}
    wrong = [key for key, value in texts.items() if not isinstance(value, str | int | None)]
    return f"has a damaged {wrong[0]}" if wrong else ""


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, str) and float(value) is not None
    except (TypeError, ValueError):
        return False


def _is_state(value: Any) -> bool:
    """Whether a value is an array of numbers `[..., H]`."""
    return isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.size > 0 < value.ndim


def _as_float16(array: np.ndarray, where: str) -> np.ndarray:
    """Return an array as FP16; what is finite but too large becomes an error."""
    if array.dtype == np.float16:
        return array
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    if (np.isinf(half) & np.isfinite(array)).any():
        raise UserError(f"{where}: a hidden state is beyond the range of FP16 (65504)")
    return half


def _settle_positions(run: RunFolder, swapped: bool) -> None:
    """Say which token each position of an older folder is taken for, and exchange them if asked."""
    if "positions" in run.details:
        if swapped:
            log.warning('"%s" names its positions: --swapped_positions is not for it', run.path)
        return
    if swapped:
        for _, _, entry in run.items():
            answer, (first, second) = entry["most_likely_answer"], POSITIONS.values()
            answer[first], answer[second] = answer.get(second), answer.get(first)
    before, content = list(POSITIONS.values())[:: -1 if swapped else 1]
    log.warning(
        '"%s" does not say which tokens its states belong to: %s is read as the last prompt token, '
        "%s as the last content token of the answer; %s",
        run.path,
        before,
        content,
        "as --swapped_positions asks"
        if swapped
        else "--swapped_positions reads them the other way round, for files of public scripts "
        "before July 2026",
    )


def _require_one_shape(run: RunFolder) -> None:
    """Raise UserError unless all states of the run have one shape and fit its details."""
    expected = known = None
    told = run.details.get("n_layers"), run.details.get("hidden_size")
    if all(isinstance(number, int) for number in told):
        expected = (told[0] + 1, told[1])
        known = "experiment_details.pkl says"
    for split, question_id, entry in run.items():
        for position in POSITIONS.values():
            array = entry["most_likely_answer"].get(position)
            if array is None:
                continue
            shape = (array.size // array.shape[-1], array.shape[-1])
            expected, known = expected or shape, known or f'question "{question_id}" has'
            if shape != expected:
                raise UserError(
                    f'"{run.path}": question "{question_id}" ({split}), {position} holds '
                    f"{shape[0]} states of width {shape[1]}, {known} {expected[0]} of width "
                    f"{expected[1]}; the folder mixes models: make it again in a new folder"
                )


# --- writing ----------------------------------------------------------------------------------


def write_generations(folder: str | Path, split: str, generations: Generations) -> None:
    """Write a split's questions atomically; UserError, naming which, for a state not finite."""
    if split not in SPLIT_NAMES:
        raise ValueError(f"split is {split!r}, expected one of {SPLIT_NAMES}")
    for question_id, entry in generations.items():
        if problem := state_problem(entry):
            raise UserError(f'question "{question_id}", {problem}')
    _write(file_of(folder, split), generations)


def state_problem(entry: dict[str, Any]) -> str:
    """Why an entry's states cannot be kept, and what would help; "" when they can."""
    for position in POSITIONS.values():
        array = entry["most_likely_answer"].get(position)
        if array is None or np.isfinite(array).all():
            continue
        states = array.reshape(-1, array.shape[-1])
        layer = np.flatnonzero(~np.isfinite(states).all(axis=1))[0]
        if np.isnan(states[layer]).any():
            return f"{position}: the state of layer {layer} is not a number; try another --dtype"
        return (
            f"{position}: the state of layer {layer} is beyond the range of FP16 (65504), in which "
            "states are kept; no --dtype changes that: use another model"
        )
    return ""


def write_measures(folder: str | Path, measures: dict[str, Any]) -> None:
    """Write uncertainty_measures.pkl atomically."""
    _write(Path(folder) / "uncertainty_measures.pkl", measures)


def write_details(folder: str | Path, details: dict[str, Any]) -> None:
    """Write experiment_details.pkl atomically, with what its position names mean."""
    meaning = {
        "emb_last_tok_before_gen": "last prompt token",
        "emb_tok_before_eos": "last content token of the answer",
    }
    _write(Path(folder) / "experiment_details.pkl", {"positions": meaning, **details})


def _write(path: Path, content: dict[Any, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, pickle.dumps(content, protocol=4))
