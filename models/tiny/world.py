"""The synthetic world of the tiny model: six small domains, their questions and answers.

    python models/tiny/world.py     # writes datasets/tiny/<domain>.json, always the same files

Everything follows from one seed. `World` draws the facts; its methods draw one `Item` each. Items
of the shipped question files and of the validation set never serve as training questions, unless
their tier says that the fact behind them was trained (README.md lists what overlaps).
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tables as t

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from spikescore.data.question import first_message  # noqa: E402

SEED = 20260
DOMAINS = ("trivia", "commonsense", "reading", "conversation", "arithmetic", "wordproblems")
LETTERS = "ABCD"

# How often a fact is drawn in training, relative to a frequent one; "absent" facts never are.
TIERS = {"frequent": 1.0, "common": 0.3, "rare": 0.1, "scarce": 0.03, "absent": 0.0}
# Dealt out in turn, so that shipped and validation facts have the same mixture of tiers.
TIER_DECK = ["frequent"] * 5 + ["common"] * 4 + ["rare"] * 4 + ["scarce"] * 3 + ["absent"] * 4


@dataclass(frozen=True)
class Answer:
    """A value and the sentence that leads up to it, e.g. ("7", "4 + 3 = 7.")."""

    value: str
    claim: str


@dataclass(frozen=True)
class Item:
    """One question with its right answer and some wrong ones; `first_message` renders it."""

    domain: str
    question: str
    right: Answer
    wrong: tuple[Answer, ...]
    answer_type: str
    group: str
    tier: str
    context: str | None = None
    choices: tuple[str, ...] | None = None
    history: tuple[tuple[str, str], ...] = ()

    def final(self, answer: Answer, letters: bool) -> str:
        """The closing sentence: the value alone, or with its option's letter before it."""
        if letters and self.choices and answer.value in self.choices:
            return f"The answer is {LETTERS[self.choices.index(answer.value)]}. {answer.value}."
        return f"The answer is {answer.value}."

    def gold(self) -> list[str]:
        """Accepted answers: the text, and for options its letter."""
        if self.choices:
            return [self.right.value, LETTERS[self.choices.index(self.right.value)]]
        return [self.right.value]


def article(noun: str) -> str:
    """Return "a spoon", "an oar"."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def canonical(sum_: str) -> str:
    """One name for a sum and its commuted form: "5 + 3" and "3 + 5" are both "3 + 5"."""
    parts = sum_.split()
    if len(parts) == 3 and parts[1] in "+*":
        low, high = sorted((int(parts[0]), int(parts[2])))
        return f"{low} {parts[1]} {high}"
    return sum_


def work_out(sum_: str) -> tuple[str, int]:
    """Solve a sum step by step from the left: ("3 * 4 = 12. 12 + 5 = 17.", 17).

    Adding or taking away a two-digit number is done in two steps, first its tens, then its ones.
    """
    parts = sum_.split()
    total = int(parts[0])
    steps = []
    for operator, operand in zip(parts[1::2], map(int, parts[2::2]), strict=True):
        pieces = [operand]
        if operator in "+-" and operand > 10 and operand % 10 and total > 20:
            pieces = [operand - operand % 10, operand % 10]
        for piece in pieces:
            before = total
            total = {"+": before + piece, "-": before - piece, "*": before * piece}[operator]
            steps.append(f"{before} {operator} {piece} = {total}.")
    return " ".join(steps), total


class World:
    """All facts of the tiny world, drawn from `seed`, and the sets that training must avoid."""

    def __init__(self, seed: int = SEED) -> None:
        self.seed = seed
        self.entities: list[tuple[str, str, dict[str, str], str]] = []  # kind, name, facts, split
        self.reserved_sums: set[str] = set()
        self.reserved_texts: set[str] = set()
        rng = random.Random(self.seed)
        names: set[str] = set()
        deck: list[str] = []

        def deal() -> str:
            if not deck:
                deck.extend(rng.sample(TIER_DECK, len(TIER_DECK)))
            return deck.pop()

        # Per kind the first 23 entities are shipped, the next 14 serve for validation.
        for index in range(37):
            for kind, attributes in t.KINDS.items():
                name = self.new_name(rng)
                while name in names:
                    name = self.new_name(rng)
                names.add(name)
                facts = {key: rng.choice(spec[0]) for key, spec in attributes.items()}
                self.entities.append((kind, name, facts, "shipped" if index < 23 else "validation"))
        self.entity_tiers = {name: deal() for _, name, _, _ in self.entities}
        deck.clear()
        shuffled = rng.sample(t.OBJECTS, len(t.OBJECTS))
        self.shipped_objects, self.validation_objects = shuffled[:68], shuffled[68:]
        self.object_tiers = {(row[0], key): deal() for row in shuffled for key in t.RELATIONS}
        self._trivia_weights = [TIERS[self.entity_tiers[name]] for _, name, _, _ in self.entities]
        self._object_facts = list(self.object_tiers)
        self._object_weights = [TIERS[tier] for tier in self.object_tiers.values()]
        self._objects = {row[0]: row for row in t.OBJECTS}
        self._names = names
        self.shipped = self._question_set(random.Random(self.seed + 1), "shipped")
        self.validation = self._question_set(random.Random(self.seed + 2), "validation")

    @staticmethod
    def new_name(rng: random.Random) -> str:
        """A made-up name; all names, trained or not, are built of the same syllables."""
        return rng.choice(t.NAME_STARTS) + rng.choice(t.NAME_MIDDLES) + rng.choice(t.NAME_ENDS)

    # -- one item per call ---------------------------------------------------------------------

    def trivia_item(
        self, rng: random.Random, kind: str, name: str, facts: dict[str, str], key: str, tier: str
    ) -> Item:
        values, questions, claim = t.KINDS[kind][key]

        def answer(value: str) -> Answer:
            return Answer(value, claim.format(e=name, a=value))

        wrong = rng.sample([value for value in values if value != facts[key]], 4)
        return Item(
            "trivia",
            rng.choice(questions).format(e=name),
            answer(facts[key]),
            tuple(answer(value) for value in wrong),
            "exact",
            name,
            tier,
        )

    def trivia(self, rng: random.Random, one_off_share: float = 0.3) -> Item:
        """A training question about a known entity, or about one that is met only this once."""
        kind, name, facts, _ = rng.choices(self.entities, self._trivia_weights)[0]
        tier = self.entity_tiers[name]
        if rng.random() < one_off_share:
            name, tier = self.new_name(rng), "one-off"
            while name in self._names:
                name = self.new_name(rng)
            facts = {key: rng.choice(spec[0]) for key, spec in t.KINDS[kind].items()}
        return self.trivia_item(rng, kind, name, facts, rng.choice(list(t.KINDS[kind])), tier)

    def object_item(self, rng: random.Random, name: str, key: str, tier: str) -> Item:
        column, questions, claim = t.RELATIONS[key]
        gold = self._objects[name][column]
        pool = sorted({row[column] for row in t.OBJECTS} - {gold})
        choices = rng.sample([gold, *rng.sample(pool, 3)], 4)
        noun = article(name)

        def answer(value: str) -> Answer:
            return Answer(value, claim.format(e=noun, E=noun[0].upper() + noun[1:], a=value))

        return Item(
            "commonsense",
            rng.choice(questions).format(e=noun),
            answer(gold),
            tuple(answer(value) for value in choices if value != gold),
            "choice",
            name,
            tier,
            choices=tuple(choices),
        )

    def commonsense(self, rng: random.Random) -> Item:
        name, key = rng.choices(self._object_facts, self._object_weights)[0]
        return self.object_item(rng, name, key, self.object_tiers[name, key])

    def people(
        self, rng: random.Random, n_people: int, n_traits: int
    ) -> tuple[list[str], dict[str, dict[str, str]], list[str]]:
        """Draw people, their traits (no value twice) and the sentences that say so."""
        people = rng.sample(t.WOMEN + t.MEN, n_people)
        keys = rng.sample(list(t.TRAITS), n_traits)
        traits = {key: dict(zip(people, rng.sample(t.TRAITS[key][0], n_people))) for key in keys}  # noqa: B905
        sentences = [t.TRAITS[key][1].format(p=p, a=traits[key][p]) for p in people for key in keys]
        return people, traits, sentences

    def reading(self, rng: random.Random, level: int) -> Item:
        """A passage and four options. Levels: two people; three; pronouns; two hops."""
        people, traits, sentences = self.people(rng, 2 if level == 1 else 3, 3 if level == 3 else 2)
        context = self.passage(rng, sentences, len(traits), pronouns=level == 3)
        keys = rng.sample(list(traits), 2)
        person = rng.choice(people)
        values, sentence, question, reverse = t.TRAITS[keys[0]]
        gold = traits[keys[0]][person]
        lead = ""
        if level == 4:
            other = t.TRAITS[keys[1]]
            clue = traits[keys[1]][person]
            relation = re.sub(r"^\{p\} ", "the person who ", other[1])[:-1].format(a=clue)
            question = question.format(p=relation)
            lead = other[1].format(p=person, a=clue) + " "
        elif level > 1 and rng.random() < 0.4:
            options = [*people, *rng.sample(sorted(set(t.WOMEN + t.MEN) - set(people)), 4)][:4]
            answers = [Answer(p, sentence.format(p=p, a=gold)) for p in options]
            return self._with_options(
                rng, reverse.format(a=gold), answers, options.index(person), context, level
            )
        else:
            question = question.format(p=person)
        others = [traits[keys[0]][p] for p in people if p != person]
        fill = rng.sample(sorted(set(values) - {gold, *others}), 3)
        options = [gold, *others, *fill][:4]
        answers = [Answer(v, lead + sentence.format(p=person, a=v)) for v in options]
        return self._with_options(rng, question, answers, 0, context, level)

    @staticmethod
    def passage(rng: random.Random, sentences: list[str], per_person: int, pronouns: bool) -> str:
        """Join the sentences: shuffled, or person by person with "She" and "He" after the first."""
        if not pronouns:
            return " ".join(rng.sample(sentences, len(sentences)))
        blocks = []
        for start in range(0, len(sentences), per_person):
            block = rng.sample(sentences[start : start + per_person], per_person)
            name = block[0].split()[0]
            pronoun = "She" if name in t.WOMEN else "He"
            blocks.append([block[0], *(line.replace(name, pronoun, 1) for line in block[1:])])
        return " ".join(line for block in rng.sample(blocks, len(blocks)) for line in block)

    @staticmethod
    def _with_options(
        rng: random.Random,
        question: str,
        answers: list[Answer],
        gold: int,
        context: str,
        level: int,
    ) -> Item:
        choices = tuple(answer.value for answer in rng.sample(answers, 4))
        wrong = tuple(answer for index, answer in enumerate(answers) if index != gold)
        return Item(
            "reading", question, answers[gold], wrong, "choice", context, f"level-{level}",
            context=context, choices=choices,
        )  # fmt: skip

    def conversation(self, rng: random.Random, level: int) -> Item:
        """A question after earlier ones. Levels: full name; pronoun; found person; "And X?"."""
        people, traits, sentences = self.people(rng, 2 + (rng.random() < 0.4), 3)
        context = self.passage(rng, sentences, 3, pronouns=rng.random() < 0.3)
        return self.conversation_item(rng, people, traits, context, level)

    def conversation_item(
        self,
        rng: random.Random,
        people: list[str],
        traits: dict[str, dict[str, str]],
        context: str,
        level: int,
    ) -> Item:
        before, key, extra = rng.sample(list(traits), 3)
        person, other = rng.sample(people, 2)
        asked = other if level in (1, 4) else person
        if level == 4:
            before = key
        history = [(t.TRAITS[before][2].format(p=asked), traits[before][asked])]
        if level == 3:
            value = traits[before][person]
            history = [(t.TRAITS[before][3].format(a=value), person)]
        if rng.random() < 0.5:
            history.insert(0, (t.TRAITS[extra][2].format(p=other), traits[extra][other]))
        question = t.TRAITS[key][2].format(p=person)
        if level in (2, 3):
            woman = person in t.WOMEN
            pronoun = ("her" if woman else "his") if key in ("job", "coat") else "she"
            pronoun = "he" if pronoun == "she" and not woman else pronoun
            question = t.PRONOUN_QUESTIONS[key].format(p=pronoun)
        elif level == 4:
            question = f"And {person}?"
        options = [traits[key][p] for p in (person, *(p for p in people if p != person))]
        fill = rng.sample(sorted(set(t.TRAITS[key][0]) - set(options)), 1)
        answers = [Answer(v, t.TRAITS[key][1].format(p=person, a=v)) for v in options + fill]
        return Item(
            "conversation", question, answers[0], tuple(answers[1:]), "exact", context,
            f"level-{level}", context=context, history=tuple(history),
        )  # fmt: skip

    def draw_sum(self, rng: random.Random, level: int) -> str:
        """Draw a sum; its results lie within 0..100 up to level 5.

        Levels: 1 small; 2 one digit; 3 two digits; 4 times; 5 two steps. Never in training:
        6 beyond 100; 7 times beyond the table; 8 other sums of two or three steps.
        """
        if level == 1:
            x, y = rng.randint(1, 10), rng.randint(1, 10)
            return f"{x} + {y}" if rng.random() < 0.5 else f"{x + y} - {y}"
        if level == 2:
            x, y = rng.randint(11, 90), rng.randint(2, 10)
            return f"{x} {rng.choice('+-')} {y}"
        if level == 3:
            x, y = rng.randint(21, 88), rng.randint(11, 67)
            return f"{x} + {y}" if x + y <= 99 else f"{max(x, y)} - {min(x, y)}"
        if level == 4:
            return f"{rng.randint(2, 10)} * {rng.randint(2, 10)}"
        if level == 6:
            return f"{rng.randint(45, 95)} + {rng.randint(56, 95)}"
        if level == 7:
            return f"{rng.randint(11, 19)} * {rng.randint(3, 9)}"
        x, y, z = rng.randint(2, 9), rng.randint(2, 9), rng.randint(2, 10)
        if level == 8:
            return f"{x + 1} * {y + 1} - {z}" if z < x + y else f"{x} + {y} + {z} + {x}"
        if rng.random() < 0.5:
            return f"{x} * {y} + {z}"
        return f"{x + z} + {y} - {z}"

    def arithmetic(self, rng: random.Random, level: int) -> Item:
        sum_ = self.draw_sum(rng, level)
        wordings = ["What is {}?", "How much is {}?", "Work out {}."]
        return self._numeric(
            rng, "arithmetic", rng.choice(wordings).format(sum_), sum_, canonical(sum_), level
        )

    def word_problem(self, rng: random.Random, level: int) -> Item:
        story, template = rng.choice(t.STORIES[level])
        people = rng.sample(t.WOMEN + t.MEN, 2)
        things = rng.sample(t.THINGS, 2)
        x, y, z = rng.randint(2, 10), rng.randint(2, 10), rng.randint(2, 9)
        if level in (2, 6):
            x = rng.randint(11, 60)
        elif level == 7:
            x, y = rng.randint(61, 95), rng.randint(45, 95)
        elif level == 8:
            x = rng.randint(11, 19)
        if template.startswith("{x} - {y}") and x <= y:
            x += y
        if template == "{x} + {y} - {z}" and z >= x + y:
            z = x
        numbers = {"x": x, "y": y, "z": z}
        sum_ = template.format(**numbers)
        text = story.format(
            p=people[0],
            q=people[1],
            t=things[0],
            s=things[1],
            c=rng.choice(t.CONTAINERS),
            **numbers,
        )
        return self._numeric(rng, "wordproblems", text, sum_, sum_, level)

    @staticmethod
    def _numeric(
        rng: random.Random, domain: str, question: str, sum_: str, group: str, level: int
    ) -> Item:
        """Wrong answers: the right sum with a slip in the last step, or one operation mixed up."""
        claim, value = work_out(sum_)
        stem = claim[: claim.rindex("=")]
        wrong = [
            Answer(str(value + slip), f"{stem}= {value + slip}.")
            for slip in rng.sample([-10, -3, -2, -1, 1, 2, 3, 10], 5)
            if 0 <= value + slip <= 100
        ]
        swapped = sum_.replace(*rng.choice([("+", "-"), ("-", "+"), ("*", "+")]), 1)
        other_claim, other = work_out(swapped)
        if domain == "wordproblems" and other != value and 0 <= other <= 100:
            wrong.append(Answer(str(other), other_claim))
        return Item(
            domain, question, Answer(str(value), claim), tuple(wrong), "numeric", group,
            f"level-{level}",
        )  # fmt: skip

    @staticmethod
    def trait_claim(person: str, key: str, value: str) -> str:
        return t.TRAITS[key][1].format(p=person, a=value)

    @staticmethod
    def trait_questions(person: str, key: str, value: str) -> tuple[str, str]:
        """Both directions: what is the person's trait, and whose trait it is."""
        return t.TRAITS[key][2].format(p=person), t.TRAITS[key][3].format(a=value)

    # -- what training may use -----------------------------------------------------------------

    def training_item(self, rng: random.Random, domain: str, level: int) -> Item:
        """Draw an item that shares no reserved sum, passage or problem with the question sets."""
        makers: dict[str, Callable[[], Item]] = {
            "trivia": lambda: self.trivia(rng),
            "commonsense": lambda: self.commonsense(rng),
            "reading": lambda: self.reading(rng, min(level, 4)),
            "conversation": lambda: self.conversation(rng, min(level, 4)),
            "arithmetic": lambda: self.arithmetic(rng, level),
            "wordproblems": lambda: self.word_problem(rng, level),
        }
        while True:
            item = makers[domain]()
            if self.is_free(item):
                return item

    def is_free(self, item: Item) -> bool:
        """True when neither the item's sums nor its passage nor its wording are reserved."""
        if first_message(item) in self.reserved_texts or item.context in self.reserved_texts:
            return False
        claims = " ".join(answer.claim for answer in (item.right, *item.wrong))
        sums = re.findall(r"\d+ [-+*] \d+", claims)
        return item.group not in self.reserved_sums and not any(
            canonical(sum_) in self.reserved_sums for sum_ in sums
        )

    # -- the question sets ---------------------------------------------------------------------

    def _question_set(self, rng: random.Random, split: str) -> dict[str, list[Item]]:
        """About 200 (shipped) or 110 (validation) items per domain; reserves what they use."""
        size = 200 if split == "shipped" else 110
        objects = self.shipped_objects if split == "shipped" else self.validation_objects
        sets: dict[str, list[Item]] = {
            "trivia": [
                self.trivia_item(rng, kind, name, facts, key, self.entity_tiers[name])
                for kind, name, facts, where in self.entities
                if where == split
                for key in facts
            ],
            "commonsense": [
                self.object_item(rng, row[0], key, self.object_tiers[row[0], key])
                for row in objects
                for key in t.RELATIONS
            ],
            "reading": [self.reading(rng, 1 + index % 4) for index in range(size)],
            "conversation": [],
            "arithmetic": [],
            "wordproblems": [],
        }
        for _ in range(size // 4):
            people, traits, sentences = self.people(rng, 2 + (rng.random() < 0.4), 3)
            context = self.passage(rng, sentences, 3, pronouns=rng.random() < 0.3)
            for level in (1, 2, 3, 4):
                item = self.conversation_item(rng, people, traits, context, level)
                sets["conversation"].append(item)
        seen: set[str] = set()
        while len(sets["arithmetic"]) < size:
            level = 1 + len(sets["arithmetic"]) % 5
            item = self.arithmetic(rng, level)
            # Levels 1 and 4 are small tables: they are trained; the other levels are held out.
            fresh = level in (1, 4) or item.group not in self.reserved_sums
            if item.group not in seen and fresh:
                seen.add(item.group)
                sets["arithmetic"].append(item)
        self.reserved_sums |= {
            item.group for item in sets["arithmetic"] if item.tier not in ("level-1", "level-4")
        }
        while len(sets["wordproblems"]) < size:
            item = self.word_problem(rng, 1 + len(sets["wordproblems"]) % 6)
            if item.question not in seen and self.is_free(item):
                seen.add(item.question)
                sets["wordproblems"].append(item)
        for domain in ("reading", "conversation", "wordproblems"):
            self.reserved_texts |= {item.context or first_message(item) for item in sets[domain]}
        # Kinds of sums and stories that training never shows take the place of some of the others.
        hard = random.Random(self.seed + 4)
        makers = {
            "arithmetic": (self.arithmetic, (6, 7, 8)),
            "wordproblems": (self.word_problem, (7, 8, 9)),
        }
        for domain, (make, levels) in makers.items():
            kept = sets[domain][: size * 5 // 8]
            while len(kept) < size:
                item = make(hard, levels[len(kept) % 3])
                if item.question not in seen and (
                    domain == "wordproblems" or item.group not in seen
                ):
                    seen |= {item.question, item.group}
                    kept.append(item)
            sets[domain] = kept
        return sets


def record(item: Item, number: int) -> dict[str, object]:
    """The item as it stands in a question file."""
    return {
        "id": f"{item.domain}-{number:04d}",
        "domain": item.domain,
        "question": item.question,
        "context": item.context,
        "choices": list(item.choices) if item.choices else None,
        "gold_answers": item.gold(),
        "answer_type": item.answer_type,
        "group": item.group,
        "history": [list(pair) for pair in item.history],
        "tier": item.tier,
    }


def balance_letters(items: list[Item], rng: random.Random) -> list[Item]:
    """Reorder the options so that each letter is right equally often, in random order."""
    letters = [index % 4 for index in range(len(items))]
    rng.shuffle(letters)
    balanced = []
    for item, letter in zip(items, letters, strict=True):
        others = [choice for choice in item.choices or () if choice != item.right.value]
        others.insert(letter, item.right.value)
        balanced.append(Item(**{**item.__dict__, "choices": tuple(others)}))
    return balanced


def write_question_files(world: World, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for domain, items in world.shipped.items():
        if items[0].choices:
            items = balance_letters(items, random.Random(world.seed + 3))
        rows = [record(item, number) for number, item in enumerate(items)]
        if items[0].context:
            stories = {item.context: f"story-{n:03d}" for n, item in enumerate(items)}
            rows = [{**row, "group": stories[item.context]} for row, item in zip(rows, items)]  # noqa: B905
        path = folder / f"{domain}.json"
        path.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"{path}: {len(rows)} questions")


if __name__ == "__main__":
    write_question_files(World(), ROOT / "datasets" / "tiny")
