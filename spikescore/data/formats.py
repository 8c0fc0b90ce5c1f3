"""Which adapter reads which native schema, and how a schema is recognised from a row.

To add a set: write an adapter in the module of its kind and give it a line in `FORMATS`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from spikescore.data.adapters import mathematics, options, passages, recall, shipped
from spikescore.data.adapters.project import FIELDS, generic, project
from spikescore.data.fields import BadRow, is_missing, keys_of
from spikescore.data.files import SPLIT_WORDS, plain_name
from spikescore.data.question import Adapter, Row
from spikescore.errors import UserError


@dataclass(frozen=True)
class Format:
    """One native schema: the keys that its rows have, and the adapter.

    `fits` looks at values where the keys alone do not tell. `gold` is the field that a split
    without answers leaves out or empty: where the first row does so all may, else none may. `apart`
    is the field that tells rows with one id apart. `tells_all` where the adapter itself puts into
    `meta` what all the other columns say.
    """

    name: str
    keys: tuple[str, ...]
    adapter: Adapter
    fits: Callable[[Row], bool] | None = None
    gold: str | None = None
    apart: str | None = None
    tells_all: bool = False

    @property
    def is_publishers(self) -> bool:
        """True for a set's own form, whose repeats are no mistake of the user's."""
        return self.name != "project"

    def reads(self, row: Row) -> bool:
        """True when the row is of this format."""
        return all(key in row for key in self.keys) and (self.fits is None or self.fits(row))

    def withholds(self, row: Row) -> bool:
        """True when the row leaves the field of its answer out or empty."""
        if self.gold is None:
            return False
        given = row.get(self.gold)
        return is_missing(given) or given == []


# The first that reads a row wins. Several lines of one name are shapes of one set.
FORMATS = (
    Format("project", ("question", "gold_answers"), project),
    Format("project", ("question", "right_answer", "wrong_answer"), project),
    Format("svamp", ("Body", "Question", "Answer"), mathematics.svamp),
    Format("coqa", ("story", "questions", "answers"), passages.coqa),
    Format("mmlu_pro", ("question", "options", "answer", "answer_index"), options.mmlu_pro),
    Format("triviaqa", ("Question", "Answer", "QuestionId"), recall.triviaqa, gold="Answer"),
    Format("triviaqa", ("Question", "QuestionId", "QuestionSource"), recall.triviaqa,
           gold="Answer"),
    Format("triviaqa", ("question", "question_id", "answer"), recall.triviaqa_hub, gold="answer"),
    Format("triviaqa_squad", ("paragraphs",), passages.triviaqa_squad, passages.is_triviaqa),
    Format("triviaqa_squad", ("id", "context", "question", "answers"),
           passages.triviaqa_squad_hub, passages.is_triviaqa),
    Format("triviaqa_flashrag", ("question", "golden_answers"), recall.triviaqa_flashrag),
    Format("squad", ("paragraphs",), passages.squad),
    Format("squad", ("id", "context", "question", "answers"), passages.squad_hub),
    Format("arc", ("question", "answerKey"), options.arc, options.is_arc, gold="answerKey"),
    Format("mmlu", ("question", "choices", "answer", "subject"), options.mmlu),
    Format("mmlu", ("question", "A", "B", "C", "D", "answer"), options.mmlu_table),
    Format("mmlu", ("Question", "A", "B", "C", "D", "Answer"), options.mmmlu_table),
    Format("hellaswag", ("ctx", "endings"), options.hellaswag, gold="label"),
    Format("sciq", ("question", "correct_answer", "distractor1"), options.sciq),
    Format("popqa", ("question", "possible_answers"), recall.popqa),
    Format("commonsenseqa", ("question", "answerKey"), options.commonsenseqa, gold="answerKey"),
    Format("commonsenseqa", ("id", "question"), options.commonsenseqa,
           options.is_asked_with_options, gold="answerKey"),
    Format("belebele", ("flores_passage", "question", "correct_answer_num"), options.belebele,
           gold="correct_answer_num"),
    Format("gpqa", ("Question", "Correct Answer", "Incorrect Answer 1"), options.gpqa),
    Format("truthfulqa", ("Question", "Best Answer", "Incorrect Answers"), recall.truthfulqa),
    Format("truthfulqa", ("question", "best_answer", "incorrect_answers"),
           recall.truthfulqa_generation),
    Format("truthfulqa", ("question", "mc1_targets", "lang"), recall.truthfulqa_generation),
    Format("truthfulqa", ("question", "mc1_targets", "mc2_targets"), options.truthfulqa_choice),
    Format("truthfulqa", ("question", "mc1_targets_choices", "mc2_targets_choices"),
           options.truthfulqa_flat),
    Format("halueval", ("question", "right_answer", "hallucinated_answer"), passages.halueval),
    Format("bioasq", ("body", "type"), recall.bioasq),
    Format("ragtruth", ("source_info", "task_type"), shipped.ragtruth),
    Format("ragtruth", ("source_id", "response", "labels"), shipped.ragtruth),
    Format("defan", ("questions", "answer", "type"), recall.defan),
    Format("true_false", ("statement", "label"), options.true_false),
    Format("synthweb", ("verbalizer_prompt", "context", "target_response"), passages.synthweb,
           tells_all=True),
    Format("openhaldet", ("sample_id", "structured_data"), shipped.openhaldet),
    Format("ipw", ("conversations", "ground_truth"), shipped.ipw, gold="ground_truth",
           apart="teacher_model"),
    Format("math", ("problem", "solution"), mathematics.competition),
    Format("math_en", ("en", "solution", "answer"), mathematics.competition),
    Format("gsm8k", ("question", "answer"), mathematics.gsm8k, mathematics.ends_with_number),
    Format("nq_open", ("question", "answer"), recall.nq_open, recall.has_answer_list),
)  # fmt: skip
NAMES = (*dict.fromkeys(one.name for one in FORMATS), "generic")


def check_format(name: str, fields: Mapping[str, str] | None) -> None:
    """Raise UserError for an unknown format name, or for `fields` that do not go with it."""
    if name not in ("auto", *NAMES):
        near = difflib.get_close_matches(name, NAMES, n=1)
        hint = f'did you mean "{near[0]}"?' if near else f"use auto or one of {', '.join(NAMES)}"
        raise UserError(f'config key "dataset_format": unknown format "{name}"; {hint}')
    if not fields:
        if name == "generic":
            raise UserError(
                'dataset_format "generic" needs the config key "fields", '
                'e.g. {"question": "q", "gold_answers": "a"}'
            )
        return
    if name not in ("auto", "generic"):
        raise UserError(f'config key "fields" is for dataset_format "generic", not "{name}"')
    unknown = [key for key in fields if key not in FIELDS]
    if unknown or "question" not in fields:
        what = '"question" is missing'
        if unknown:
            near = difflib.get_close_matches(unknown[0], FIELDS, n=1)
            hint = f', did you mean "{near[0]}"?' if near else ""
            what = f'"{unknown[0]}" is not a known name{hint}'
        raise UserError(f'config key "fields": {what}; it maps {", ".join(FIELDS)} to the file\'s')


def find_format(row: Row, name: str, fields: Mapping[str, str] | None) -> Format:
    """Return the format that reads this row: the named one, or the first that fits.

    Raises BadRow when none does. A named format that lacks a key is returned all the same: its
    adapter says which one.
    """
    if fields:
        return Format("generic", (), generic(fields))
    named = [one for one in FORMATS if name in ("auto", one.name)]
    found = next((one for one in named if one.reads(row)), None)
    if found is None and name != "auto":
        return max(named, key=lambda one: sum(key in row for key in one.keys))
    if found is None:
        raise BadRow(
            None,
            f"no known format has these keys ({keys_of(row)}); set "
            f'"dataset_format" to one of {", ".join(NAMES)}, or name the keys in '
            '"fields": {"question": "...", "gold_answers": "..."}',
        )
    return found


# --- a domain's name --------------------------------------------------------------------------

_ALSO_CALLED = {
    "triviaqa_flashrag": ("triviaqa", "trivia", "triviaqarc"),
    "nq_open": ("nq_open", "nqopen", "nq", "naturalquestions"),
    "gsm8k": ("gsm8k", "gsm"),
    "commonsenseqa": ("commonsenseqa", "csqa"),
    "math": ("math", "math500", "hendrycksmath", "competitionmath"),
    "squad": ("squad",),
}
"""Format -> the set it is named after, and what else files and folders of that set are called."""
_NO_NAME = re.compile(
    r"(v|part|shard|chunk)?\d*|data|qa|main|default|rand|split|no|answers|of|jsonl?|parquet|csv|"
    r"snapshots|[0-9a-f]{40}|" + "|".join(word for words in SPLIT_WORDS.values() for word in words)
)


def domain_of(path: Path, format_name: str) -> str:
    """Return the domain of rows that do not tell their set: by the names in their path.

    The set that the format is named after where file or folder are called so; else the name of the
    file, or of the nearest folder whose name says more than "test" or "data". Of a publisher's file
    that is the name without its split, so that train and test are one domain.
    """
    known = _ALSO_CALLED.get(format_name, ())
    parts = [plain_name(path), *(part.name for part in path.absolute().parents)]
    parts = [re.sub("^datasets--(.*--)?", "", part) for part in parts]  # the hub's own cache
    telling = [part for part in parts if _words(part)]
    if any("".join(_words(part)) in ("".join(known[:1]).replace("_", ""), *known[1:])
           for part in telling[:3]):  # fmt: skip
        return known[0]
    if not telling:
        return plain_name(path)
    return telling[0] if format_name in ("project", "generic") else "_".join(_words(telling[0]))


def _words(name: str) -> list[str]:
    """Return the words of a name that are neither a split, nor a number, nor a shard's."""
    words = re.split(r"[^\w]+|_", name.casefold())
    return [word for word in words if not _NO_NAME.fullmatch(word)]


_PARALLEL = ("truthfulqa", "mmlu", "hellaswag", "arc")
"""Sets that others have translated; a language is a domain of its own."""
_LANGUAGES = frozenset(
    "am ar bg bn ca cs da de el en es et eu fi fr gl gu ha hi hr hu hy id is it ja kn ko lt lv ml "
    "mr nb ne nl nso pl pt ro ru sk sl sr sv sw ta te uk vi yo zh zu".split()
)
_SPOKEN = dict(zip(
    "arabic bengali bulgarian catalan czech danish german greek english spanish basque finnish "
    "french galician hindi hungarian indonesian italian japanese korean dutch polish portuguese "
    "romanian russian slovak swedish swahili turkish ukrainian vietnamese yoruba chinese".split(),
    "ar bn bg ca cs da de el en es eu fi fr gl hi hu id it ja ko nl pl pt ro ru sk sv sw tr uk vi "
    "yo zh".split(), strict=True,
))  # fmt: skip
_REGION = re.compile(  # "DE-DE", "pt_br", "zh_hans"; of "qa-es" nothing
    rf"(?<![a-z])({'|'.join(_LANGUAGES)})"
    r"(?:-[a-z]{2}|[-_](?:br|cn|tw|hk|us|gb|mx|la|in|kr|jp|hans|hant|latn|cyrl))(?![a-z])"
)
_BESIDE = frozenset(
    "truthful qa multi mt gen generation mc multiple choice uhura okapi m easy challenge ai2 data "
    "main default part of".split()
) | {word for words in SPLIT_WORDS.values() for word in words}
_ITSELF = frozenset(f"{name}{more}" for name in (*_PARALLEL, "mmmlu") for more in ("", "x"))
"""What a translation's file, or a folder above it, is called beside its language."""
_RETRO = re.compile("retro(holdout|misconception|truthfulqa)|truthfulqaretro")


def _codes(name: str) -> tuple[set[str], set[str]]:
    """Return the languages that a name says, and its other words."""
    name = _REGION.sub(r"\1", name.casefold())
    words = {_SPOKEN.get(word, word) for word in re.findall("[a-z]+[0-9]*", name)}
    return words & _LANGUAGES, words - _LANGUAGES


@cache
def told_by_path(format_name: str, file: Path) -> tuple[str, str | None]:
    """Return what a file's path tells of a set's edition: (domain, language), "" and None for none.

    ARC's Easy and Challenge; Retro-Misconceptions, which has TruthfulQA's form; and of a set that
    was translated the language, from names that hold nothing else: `es/validation.json`,
    `truthfulqa_gen_de_validation.jsonl`, `mmlu_DE-DE.csv`, `TruthfulQA-Italian.jsonl`.
    """
    if format_name not in _PARALLEL:
        return "", None
    names = [plain_name(file), *(part.name for part in file.absolute().parents)]
    near = [re.findall("[a-z0-9]+", name.casefold()) for name in names[:4]]
    domain, language = "", None
    if format_name == "arc":
        levels = (one for words in near for one in ("easy", "challenge") if one in words)
        domain = next((f"arc_{level}" for level in levels), "")
    elif format_name == "truthfulqa" and any(_RETRO.search("".join(words)) for words in near):
        domain = "retro_misconceptions"
    for place, name in enumerate(names[:4]):
        codes, others = _codes(name)
        if len(codes) > 1 or others - _BESIDE - _ITSELF:
            break
        if not codes and others & _ITSELF and place == 0:  # "pt_br/truthfulqa.jsonl"
            above, more = _codes(names[1])
            codes = above if len(above) == 1 and not more else codes
        language = next(iter(codes), None)
        if language or others & _ITSELF:
            break
    return domain, language
