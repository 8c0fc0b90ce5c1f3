"""Training documents for the tiny model: chats over the questions of `world.py`, and drills.

A document is a list of `Turn`s. Only assistant turns marked `learn` count in the loss: answers that
are wrong on purpose are context, never a target.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

import tables as t
from world import LETTERS, Answer, Item, World

from spikescore.data.question import first_message
from spikescore.dialogues.prompts import DEFAULT_SYSTEM_PROMPT, FAMILIES, STRATEGIES, follow_up


@dataclass(frozen=True)
class Turn:
    role: str
    text: str
    learn: bool = True


Document = list[Turn]

OPENERS: dict[str, list[str]] = {
    "encouragement": [
        "Thank you.", "Thanks, I will go on.", "Glad to help.", "Here is a little more.",
        "I am happy to continue.",
    ],
    "analytical": [
        "My reason is simple.", "This is the point that decides it.", "Here is the argument.",
        "One fact matters most.",
    ],
    "step_by_step": [
        "First I read the question.", "I start again from the beginning.", "Step one is this.",
        "Once more, in order.",
    ],
    "exploratory": [
        "Another answer could be {alternative}.", "Someone could say {alternative}.",
        "I compared it with {alternative}.", "I looked at it in another way.",
    ],
    "technical": [
        "To be precise, this is the fact.", "In exact terms.", "It rests on one statement.",
        "More exactly.",
    ],
    "critical": [
        "I checked it once more.", "I looked for a mistake.", "Yes, I am sure.",
        "I see why one could doubt it.",
    ],
    "creative": [
        "In other words.", "Put simply.", "Here is a very short story.", "Think of it like this.",
    ],
    "reflective": [
        "Looking back, I stand by it.", "My mind has not changed.", "I am as sure as before.",
        "I thought about all of it.",
    ],
    "continue": ["Going on.", "Once more.", "I continue."],
}  # fmt: skip
CHANGES = [
    "I made a mistake.", "I change my answer.", "On reflection that was wrong.",
    "No, I must correct myself.",
]  # fmt: skip
# Families whose replies nearly always restate the evidence.
EVIDENCE = {"analytical", "step_by_step", "technical"}
PARAPHRASES: dict[str, list[str]] = {
    "encouragement": ["Nice, keep going.", "Well done. Tell me more."],
    "analytical": ["Explain your reasons.", "What is your answer based on?"],
    "step_by_step": ["One step at a time, please.", "Show me your steps."],
    "exploratory": ["What else could it be?", "Consider other answers."],
    "technical": ["Be exact, please.", "Which fact do you rely on?"],
    "critical": ["I doubt that. Check again.", "Could you be wrong?", "Is that really right?"],
    "creative": ["Say it differently.", "Make it a story."],
    "reflective": ["Do you still believe it?", "What is your final view?"],
    "continue": ["Go on.", "Please continue.", "Next."],
}
SYSTEM_VARIANTS = ["Answer briefly and state your final answer.", "You are a helpful assistant."]


def system_turn(rng: random.Random, share: float) -> Document:
    """The default system prompt with probability `share`, at times another one."""
    if rng.random() >= share:
        return []
    text = DEFAULT_SYSTEM_PROMPT if rng.random() < 0.9 else rng.choice(SYSTEM_VARIANTS)
    return [Turn("system", text)]


def reply(item: Item, answer: Answer, letters: bool, opener: str = "", claim: bool = True) -> str:
    parts = (opener, claim and answer.claim, item.final(answer, letters))
    return " ".join(part for part in parts if part)


def follow_up_text(rng: random.Random, family: str, text: str) -> str:
    """The prompt itself most of the time, else another wording of the same family."""
    draw = rng.random()
    if draw < 0.75:
        return text
    if draw < 0.9 and family in PARAPHRASES:
        return rng.choice(PARAPHRASES[family])
    return rng.choice(["Okay. ", "Now: ", "Well. "]) + text


def chat(
    rng: random.Random, item: Item, n_follow_ups: int, system_share: float, letters: bool
) -> Document:
    """One question, its answer and follow-ups.

    Some first answers are wrong on purpose (not learned). A wrong answer is kept for a while, in
    replies that are learned as faithful repetition, and then taken back; sometimes a right answer
    slips later on and is restored.
    """
    document = [*system_turn(rng, system_share), Turn("user", first_message(item))]
    slipped = n_follow_ups > 0 and bool(item.wrong) and rng.random() < 0.25
    current = rng.choice(item.wrong) if slipped else item.right
    document.append(Turn("assistant", reply(item, current, letters), learn=not slipped))
    strategy = rng.choice(STRATEGIES)
    for turn in range(2, n_follow_ups + 2):
        if n_follow_ups < 8:
            prompt = rng.choice(rng.choice(list(FAMILIES.values())))
        else:
            prompt = follow_up(strategy, turn, seed=rng.randrange(10**6), item_id="x")
        document.append(Turn("user", follow_up_text(rng, prompt.family, prompt.text)))
        challenged = prompt.family in ("critical", "reflective", "exploratory")
        evidence = rng.random() < (0.9 if prompt.family in EVIDENCE else 0.35)
        opener, learn = opening(rng, item, current, prompt.family), True
        if current is not item.right and rng.random() < (0.4 if challenged else 0.15):
            current, opener, evidence = item.right, rng.choice(CHANGES), True
        elif current is item.right and item.wrong and challenged and rng.random() < 0.08:
            current, opener, learn = rng.choice(item.wrong), rng.choice(CHANGES), False
            evidence = True
        document.append(Turn("assistant", reply(item, current, letters, opener, evidence), learn))
    return document


def opening(rng: random.Random, item: Item, current: Answer, family: str) -> str:
    """A first sentence in the tone of the family; it may name another answer."""
    text = rng.choice(OPENERS.get(family, OPENERS["continue"]))
    others = [answer.value for answer in (item.right, *item.wrong) if answer.value != current.value]
    if "{alternative}" in text:
        return text.format(alternative=rng.choice(others)) if others else "I looked again."
    return text


def lesson(rng: random.Random, world: World, domain: str, level: int, letters: bool) -> Document:
    """Several questions in one chat: cheap practice for facts, passages and sums."""
    document = system_turn(rng, 0.3)
    if domain in ("reading", "conversation"):
        return document + passage_lesson(rng, world, domain, level, letters)
    for _ in range(rng.randint(3, 6)):
        item = world.training_item(rng, domain, level)
        document.append(Turn("user", first_message(item)))
        document.append(Turn("assistant", reply(item, item.right, letters)))
    return document


def passage_lesson(
    rng: random.Random, world: World, domain: str, level: int, letters: bool
) -> Document:
    """One passage and several questions on it; some with options, or followed by "And X?"."""
    while True:
        people, traits, sentences = world.people(rng, min(2 + (level > 1), 3), rng.choice([2, 3]))
        context = world.passage(
            rng, sentences, len(traits), pronouns=level >= 3 and rng.random() < 0.5
        )
        if context not in world.reserved_texts:
            break
    document: Document = []
    pairs = [(person, key) for person in people for key in traits]
    for index, (person, key) in enumerate(rng.sample(pairs, min(5, len(pairs)))):
        value = traits[key][person]
        question, reverse = world.trait_questions(person, key, value)
        claim = world.trait_claim(person, key, value)
        gold = value
        if rng.random() < 0.35:
            question, gold = reverse, person
        lead = f"Passage:\n{context}\n\n" if index == 0 else ""
        listing = ""
        final = f"The answer is {gold}."
        if domain == "reading" and rng.random() < 0.6:
            mentioned = people if gold == person else list(traits[key].values())
            pool = t.WOMEN + t.MEN if gold == person else t.TRAITS[key][0]
            fill = rng.sample(sorted(set(pool) - set(mentioned)), 4 - len(mentioned))
            listing, closing = lettered_options(rng, [*mentioned, *fill], gold)
            final = closing if letters else final
        document.append(Turn("user", f"{lead}Question: {question}{listing}"))
        document.append(Turn("assistant", f"{claim} {final}"))
        others = [other for other in people if other != person]
        if domain == "conversation" and gold == value and rng.random() < 0.5:
            other = rng.choice(others)
            value = traits[key][other]
            document.append(Turn("user", f"Question: And {other}?"))
            claim = world.trait_claim(other, key, value)
            document.append(Turn("assistant", f"{claim} The answer is {value}."))
    return document


def lettered_options(rng: random.Random, options: list[str], gold: str) -> tuple[str, str]:
    """The options block in a random order, and the closing sentence that picks `gold`."""
    options = rng.sample(options, len(options))
    listing = "\n".join(f"{LETTERS[n]}. {text}" for n, text in enumerate(options))
    return f"\n\nOptions:\n{listing}", f"The answer is {LETTERS[options.index(gold)]}. {gold}."


def letter_drill(rng: random.Random) -> Document:
    """Options of any words; asked by text or by letter, so that the letter must be read off."""
    document: Document = []
    for _ in range(rng.randint(3, 6)):
        options = rng.sample(WORDS, rng.choice([2, 3, 4, 4, 4]))
        gold = rng.choice(options)
        listing, closing = lettered_options(rng, options, gold)
        if rng.random() < 0.8:
            question = f"Which option says {gold}?"
            answer = f"It says {gold}. {closing}"
        else:
            question, answer = f"What does option {closing.split()[3][0]} say?", closing
        document.append(Turn("user", f"Question: {question}{listing}"))
        document.append(Turn("assistant", answer))
    return document


def copy_drill(rng: random.Random, world: World) -> Document:
    """Say a random list of words again, or look up one word's partner in a list of pairs."""
    if rng.random() < 0.5:
        words = [random_word(rng, world) for _ in range(rng.randint(6, 20))]
        return [Turn("user", "Repeat: " + " ".join(words)), Turn("assistant", " ".join(words))]
    keys = rng.sample(WORDS, rng.randint(3, 8))
    values = [random_word(rng, world) for _ in keys]
    listing = " ".join(f"{key} is {value}." for key, value in zip(keys, values, strict=True))
    document = []
    for index, place in enumerate(rng.sample(range(len(keys)), min(4, len(keys)))):
        lead = f"Passage:\n{listing}\n\n" if index == 0 else ""
        document.append(Turn("user", f"{lead}Question: What is {keys[place]}?"))
        document.append(
            Turn("assistant", f"{keys[place]} is {values[place]}. The answer is {values[place]}.")
        )
    return document


def sums_drill(rng: random.Random, world: World, level: int) -> Document:
    """A row of sums and their solutions, or counting on in steps."""
    if rng.random() < 0.2:
        step = rng.choice([-10, -2, -1, 1, 2, 3, 5, 10])
        start = rng.randint(0, 100)
        row = [n for n in range(start, start + 12 * step, step) if 0 <= n <= 100]
        asked = f"Count from {start} in steps of {abs(step)} {'up' if step > 0 else 'down'}."
        return [Turn("user", asked), Turn("assistant", " ".join(map(str, row)))]
    items = [world.training_item(rng, "arithmetic", level) for _ in range(rng.randint(4, 8))]
    sums = [re.search(r"\d+( [-+*] \d+)+", item.question) for item in items]
    asked = "; ".join(found.group() for found in sums if found)
    solved = " ".join(item.right.claim for item in items)
    return [Turn("user", f"Sums: {asked}"), Turn("assistant", solved)]


WORDS = sorted(
    {
        *t.GOODS, *t.COLOURS, *t.FOODS, *t.HABITATS, *t.FIELDS, *t.INSTRUMENTS, *t.ANIMALS,
        *t.TOWNS, *t.JOBS, *t.DAYS, *t.THINGS, *t.CONTAINERS, *t.WOMEN, *t.MEN,
        *(word for row in t.OBJECTS for word in row),
    }
)  # fmt: skip


def random_word(rng: random.Random, world: World) -> str:
    draw = rng.random()
    if draw < 0.1:
        return world.new_name(rng)
    return str(rng.randint(0, 100)) if draw < 0.3 else rng.choice(WORDS)


def draw_level(rng: random.Random, domain: str, progress: float) -> int:
    """Easy levels first; from 40% of the run on all levels alike."""
    top = {"arithmetic": 5, "wordproblems": 6}.get(domain, 4)
    reach = min(top, 1 + int(progress / 0.4 * top)) if progress < 0.4 else top
    return rng.randint(1, reach)


DOMAIN_WEIGHTS = {
    "trivia": 0.13, "commonsense": 0.16, "reading": 0.22, "conversation": 0.17,
    "arithmetic": 0.17, "wordproblems": 0.15,
}  # fmt: skip


def draw_document(
    rng: random.Random, world: World, progress: float, letters: bool = True
) -> Document:
    """One training document at `progress` (0 to 1) through the run.

    Drills and lessons make up most of the beginning, chats half of the rest, and 8% of the chats
    have 19 follow-ups.
    """
    domain = rng.choices(list(DOMAIN_WEIGHTS), list(DOMAIN_WEIGHTS.values()))[0]
    level = draw_level(rng, domain, progress)
    draw = rng.random()
    drills = 0.40 if progress < 0.2 else 0.16
    lessons = 0.5 if progress < 0.2 else 0.38
    if draw < drills:
        if domain in ("arithmetic", "wordproblems"):
            return sums_drill(rng, world, level if domain == "arithmetic" else rng.randint(1, 5))
        return letter_drill(rng) if letters and rng.random() < 0.6 else copy_drill(rng, world)
    if draw < drills + lessons:
        return lesson(rng, world, domain, level, letters)
    item = world.training_item(rng, domain, level)
    if rng.random() < (0.01 if progress < 0.2 else 0.08):
        return chat(rng, item, 19, 0.9, letters)
    return chat(rng, item, rng.choice([0, 0, 1, 2, 3, 4]), 0.6, letters)
