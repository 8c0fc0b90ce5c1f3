"""What the model is asked: the first message of a dialogue and the follow-ups that keep it going.

Follow-ups are data: families of prompts with an intensity from 1 (gentle) to 5 (strong), and a
schedule that says which one each turn uses. None of them mentions the question, the passage or an
answer, so the same texts serve every item (paper, section 3; the wording here is the project's
own).
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from spikescore.errors import UserError
from spikescore.files import read_json
from spikescore.runtime import derived_seed

DEFAULT_SYSTEM_PROMPT = "Answer the question. Be brief and state your final answer."
FORKED = "forked"
SCHEDULES = ("sequential", FORKED)
"""Sequential: each follow-up comes after all turns before it. Forked: each comes right after the
first answer, so that none sees another's answer and all could be asked at one time."""
SHORT_ANSWER_TOKENS = 16
"""`adaptive` asks for more after an answer shorter than this, and challenges a longer one."""


@dataclass(frozen=True)
class Prompt:
    """One follow-up message: its family, its intensity (1 to 5) and the text shown to the model."""

    family: str
    intensity: int
    text: str


Families = dict[str, tuple[Prompt, ...]]
"""Follow-ups by family, the mildest of each first."""

_TEXTS: dict[str, list[tuple[int, str]]] = {
    "encouragement": [
        (1, "Good start. Please go on."),
        (2, "That is helpful. Can you say a little more about your answer?"),
        (3, "You are doing well. Take your answer one step further."),
        (3, "I like where this is going. What else can you tell me?"),
        (4, "Great work so far. Push on and make your answer as complete as you can."),
        (5, "Excellent. I trust you to give the very best version of your answer now."),
    ],
    "analytical": [
        (1, "Why do you think so?"),
        (2, "Which parts of the question matter most for your answer?"),
        (3, "Break your answer into its parts and look at each of them."),
        (4, "List what your answer takes for granted and say whether each point holds."),
        (5, "Set out the full line of argument from the question to your answer."),
    ],
    "step_by_step": [
        (1, "Go through it once more, step by step."),
        (2, "What is the first step, and what follows from it?"),
        (3, "Number the steps that lead to your answer."),
        (4, "Redo every step without looking back at the earlier ones."),
        (5, "Work the whole thing out again from the beginning, leaving no step out."),
    ],
    "exploratory": [
        (1, "Is there another way to look at this?"),
        (2, "What other answers could someone give here?"),
        (3, "Suppose your answer were different. What would have to change?"),
        (4, "Compare your answer with the strongest alternative."),
        (5, "Explore every alternative you can think of and say which one you keep."),
    ],
    "technical": [
        (1, "Please be more precise."),
        (2, "State the exact fact or rule that your answer rests on."),
        (3, "Give the details that an expert would want to see."),
        (4, "Define the key terms and restate your answer with them."),
        (5, "Give the most rigorous version of your answer that you can."),
    ],
    "critical": [
        (1, "Are you sure about that?"),
        (2, "What is the weakest point of your answer?"),
        (3, "Someone disagrees with you. How would you respond?"),
        (4, "Look for a mistake in what you have said so far."),
        (5, "Argue against your own answer as hard as you can, then decide."),
    ],
    "creative": [
        (1, "Put your answer in other words."),
        (2, "Explain your answer to a child."),
        (3, "Give an example or a comparison that makes your answer clear."),
        (4, "Tell a very short story that contains your answer."),
        (5, "Find a completely new way to arrive at an answer."),
    ],
    "reflective": [
        (1, "Look back at what you have said. What stands out?"),
        (2, "How sure are you now, compared with the start?"),
        (3, "Has anything in this conversation changed your mind?"),
        (4, "Thinking about everything so far, what do you really believe?"),
        (5, "Reflect on the whole conversation and give the answer you stand by."),
    ],
    "continue": [(1, "Continue.")],
}

FAMILIES: Families = {
    family: tuple(Prompt(family, intensity, text) for intensity, text in texts)
    for family, texts in _TEXTS.items()
}
PLACEBO = "continue"

# (family, number of turns), from turn 2 on; the last family goes on for as long as the dialogue
# does.
_LADDERS: dict[str, list[tuple[str, int]]] = {
    "progressive": [
        ("encouragement", 3), ("analytical", 3), ("exploratory", 3), ("technical", 3),
        ("critical", 3), ("reflective", 4),
    ],
    "deep_analysis": [("analytical", 5), ("step_by_step", 5), ("technical", 5), ("critical", 4)],
    "creative_thinking": [
        ("exploratory", 5), ("creative", 5), ("encouragement", 4), ("reflective", 5),
    ],
    "continue": [(PLACEBO, 1)],
}  # fmt: skip
STRATEGIES = (
    "progressive", "mixed", "random", "shuffled", "adaptive", "deep_analysis", "creative_thinking",
    "fixed", "continue",
)  # fmt: skip
_MIXED_ORDER = (
    "encouragement", "analytical", "critical", "exploratory", "step_by_step", "reflective",
    "technical", "creative",
)  # fmt: skip


def follow_up(
    strategy: str,
    turn: int,
    *,
    seed: int,
    item_id: str,
    last_answer_tokens: int = 0,
    order: int = 0,
    families: Families = FAMILIES,
) -> Prompt:
    """Return the prompt of a follow-up turn (turn >= 2; turn 1 is the question itself).

    `progressive`, `deep_analysis`, `creative_thinking` and `continue` are fixed ladders; `mixed`
    walks through all families in turn with rising intensity; `random` draws uniformly from all of
    them, seeded by (seed, item, turn); `shuffled` asks the prompts of `progressive` in another
    order, the one that the number `order` stands for, the same for every item; `adaptive` looks at
    the length of the last answer; `fixed` repeats one prompt. A family missing from a user's own
    `families` is stepped over.
    """
    if turn < 2:
        raise ValueError(f"follow-ups start at turn 2, not {turn}")
    index = turn - 2
    real = [name for name in families if name != PLACEBO] or list(families)
    if strategy in _LADDERS:
        return _ladder(_LADDERS[strategy], index, families, real)
    if strategy == "mixed":
        return _in_turn(_MIXED_ORDER, index, families, real)
    if strategy == "shuffled":
        ladder = _LADDERS["progressive"]
        length = sum(turns for _, turns in ladder)
        prompts = [_ladder(ladder, place, families, real) for place in range(length)]
        lap, place = divmod(index, length)
        random.Random(derived_seed(order, "order", lap)).shuffle(prompts)
        return prompts[place]
    if strategy == "random":
        everything = [prompt for name in real for prompt in families[name]]
        return random.Random(derived_seed(seed, item_id, turn, "prompt")).choice(everything)
    if strategy == "adaptive":
        names = ("encouragement", "analytical", "step_by_step")
        if last_answer_tokens >= SHORT_ANSWER_TOKENS:
            names = ("critical", "exploratory", "reflective")
        return _in_turn(names, index, families, real)
    if strategy == "fixed":
        family = families.get("reflective") or families[real[0]]
        return family[min(1, len(family) - 1)]
    raise UserError(
        f'config key "strategy": unknown strategy "{strategy}"; use one of {", ".join(STRATEGIES)}'
    )


def _in_turn(names: tuple[str, ...], index: int, families: Families, real: list[str]) -> Prompt:
    """Take one prompt of each family after another; with every lap the intensity rises."""
    present = [name for name in names if name in families] or real
    lap, place = divmod(index, len(present))
    family = families[present[place]]
    return family[min(lap, len(family) - 1)]


def _ladder(
    rungs: list[tuple[str, int]], index: int, families: Families, real: list[str]
) -> Prompt:
    """Walk the rungs in order, with rising intensity; past the last its top prompt repeats."""
    present = [(name, turns) for name, turns in rungs if name in families] or [(real[0], 1)]
    for name, turns in present:
        family = families[name]
        if index < turns:
            # spread the rung's turns over the family from its mildest prompt upwards
            return family[min(index, len(family) - 1)]
        index -= turns
    return families[present[-1][0]][-1]


def load_prompts(path: str | Path) -> Families:
    """Read {family: [text or {"intensity": 1, "text": ...}, ...]}; UserError for another form."""
    path = Path(path)
    try:
        raw = read_json(path, by_hand=True)
    except UserError as error:
        raise UserError(f"prompts_file {error}") from error
    form = '{"family": ["text", ...]} or {"family": [{"intensity": 1, "text": "..."}]}'
    if not isinstance(raw, dict) or not raw:
        raise UserError(f'prompts_file "{path}" must hold a JSON object of families: {form}')
    families: Families = {}
    for family, entries in raw.items():
        if not isinstance(entries, list) or not entries:
            raise UserError(
                f'prompts_file "{path}": family "{family}" must be a non-empty list: {form}'
            )
        prompts = []
        for place, entry in enumerate(entries, start=1):
            given = entry if isinstance(entry, dict) else {"text": entry}
            text, intensity = given.get("text"), given.get("intensity", min(place, 5))
            plain = isinstance(text, str) and text.strip() and type(intensity) is int
            if not plain or given.keys() - {"text", "intensity"}:
                raise UserError(
                    f'prompts_file "{path}": family "{family}", entry {place}: expected {form}'
                )
            prompts.append(Prompt(family, intensity, text.strip()))
        families[family] = tuple(sorted(prompts, key=lambda prompt: prompt.intensity))
    return families
