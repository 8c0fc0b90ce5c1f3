"""P(True): how probable the model itself finds it that its answer is right.

Kadavath et al., "Language Models (Mostly) Know What They Know" (2022): the model is shown the
question, sampled answers and one proposed answer, and asked whether that one is (A) true or (B)
false; the score is the probability of "A". Examples with known outcome come before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from spikescore.errors import UserError
from spikescore.prompt_ends import read_ends
from spikescore.short_answers import AnswerPrompt

_INSTRUCTION = (
    "You see a question, answers that were brainstormed for it, and one possible answer. "
    "Say whether the possible answer is true. Reply with A or B alone."
)


def p_true_case(entry: dict[str, Any]) -> str:
    """The question of whether an entry's most likely answer is true."""
    ideas = "\n".join(f"- {response[0]}" for response in entry["responses"])
    return (
        f"{entry['prompt']}\n\nBrainstormed answers:\n{ideas}\n\n"
        f"Possible answer: {entry['most_likely_answer']['response']}\n\n"
        "Is the possible answer:\nA) true\nB) false"
    )


def p_true_prompt(
    entry: dict[str, Any], examples: Sequence[dict[str, Any]], prompt: AnswerPrompt
) -> list[int]:
    """Ids of the prompt whose next token is "A" or "B"; examples need a known accuracy."""
    chat = prompt.chat
    letters = ["A" if one["most_likely_answer"]["accuracy"] else "B" for one in examples]
    if prompt.use_template:
        messages = [{"role": "system", "content": _INSTRUCTION}]
        for example, letter in zip(examples, letters, strict=True):
            messages.append({"role": "user", "content": p_true_case(example)})
            messages.append({"role": "assistant", "content": letter})
        return chat.render([*messages, {"role": "user", "content": p_true_case(entry)}])
    blocks = [
        f"{p_true_case(example)}\nThe possible answer is: {letter}"
        for example, letter in zip(examples, letters, strict=True)
    ]
    blocks.append(f"{p_true_case(entry)}\nThe possible answer is:")
    return list(chat.tokenizer("\n\n".join([_INSTRUCTION, *blocks]))["input_ids"])


def option_id(prompt: AnswerPrompt, letter: str = "A") -> int:
    """The token that answers with this letter, at the start of a reply or after a space."""
    text = letter if prompt.use_template else f" {letter}"
    ids = prompt.chat.tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise UserError(f'the tokenizer has no token for "{letter}", which P(True) needs')
    return ids[-1]


def next_token_log_probabilities(
    model: Any, prompts: Sequence[Sequence[int]], token: int
) -> list[float]:
    """Natural log-probability of a token right after each prompt, from raw logits.

    What a prompt has in common with the one before it is not encoded again.
    """
    found = [
        float(torch.log_softmax(end.logits.float(), dim=-1)[token])
        for end in read_ends(model, [prompts], slots=1)
    ]
    if not all(map(math.isfinite, found)):
        raise UserError("P(True): the model's output is not a number")
    return found
