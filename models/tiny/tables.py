"""The words and sentence patterns of the tiny world: plain data, no logic; `world.py` uses it."""

from __future__ import annotations

# Three-part names give 64,000 possibilities, so an entity met once in training never returns.
NAME_STARTS = """Bar Cal Dor Fen Gal Hol Jor Kal Lum Mar Nor Ost Pel Quin Ral Sar Tol Ul Val Wes
Yor Zan Bre Cro Dra Fla Gri Kla Pra Sti Tru Vel Ash Ber Ced Dun Eld Far Gor Hax""".split()
NAME_MIDDLES = """a be co da e fi go ha i ja ko la mi no o pa qui ro sa ti u va wo ye
zi bra cle dri fro gla kre plo stu tra vi lo ma ne ri su""".split()
NAME_ENDS = """ban cor dell fax gan horn jin kar lin mond nar pol ras seth tan vik wyn xis yon zor
berg dan fell gar ham kin los mar nim pra rill sund thar ven wick mor das lek sha tos""".split()

WOMEN = """Anna Bella Clara Diana Emma Fiona Grace Helen Irene Julia Kate Laura Maria Nina Olga
Paula Rosa Sara Tina Vera Wendy Zoe Alice Betty Carol Donna Elsa Flora Gina Heidi""".split()
MEN = """Adam Boris Carl David Erik Frank George Henry Ivan Jack Karl Leo Martin Noah Oscar Peter
Quinn Robert Simon Thomas Victor Walter Xaver Albert Bruno Conrad Dennis Edgar Felix
Gustav""".split()

GOODS = """salt silk wine honey cheese paper rope glass candles bells knives carpets soap boots
hats clocks bricks tea baskets drums""".split()
COLOURS = "red blue green yellow white black purple golden brown grey pink silver".split()
FOODS = """bread rice soup fish apples plums beans corn nuts eggs grapes carrots cake pasta
mushrooms onions berries seeds roots leaves""".split()
HABITATS = """forest desert river swamp mountains sea caves meadows jungle snow lake
valley cliffs sand""".split()
FIELDS = """history botany law music geometry medicine grammar geology chemistry poetry
economics zoology painting optics logic sculpture navigation farming astronomy weaving""".split()
INSTRUMENTS = "flute harp drum piano guitar violin trumpet cello horn banjo lute tuba".split()
ANIMALS = """goat hen dog cat horse cow duck pig rabbit parrot donkey sheep snake fox mouse
turtle""".split()
TOWNS = """Ashford Brinton Carlow Denby Elmswell Farley Glenham Hartwell Kirby Langton Melrose
Norwood Oakley Preston Redhill Selby Tilbury Upton Waltham Yarrow Barton Corby Dalton
Exmoor""".split()
JOBS = """baker farmer nurse teacher pilot painter tailor butcher dancer doctor driver gardener
hunter judge lawyer miner plumber sailor singer soldier waiter writer barber cook""".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
THINGS = """apples pens books coins stamps cards shells marbles buttons stickers pencils cookies
eggs balls flowers stones tickets toys candles keys""".split()
CONTAINERS = "boxes bags shelves baskets jars drawers rows plates".split()

# object, material, place, use: one answer each, which is the truth in this world.
OBJECTS = [
    tuple(line.split())
    for line in """
spoon metal kitchen stirring
fork metal kitchen eating
kettle metal kitchen boiling
pan metal kitchen frying
plate clay kitchen serving
mug clay kitchen drinking
vase clay parlour decorating
bottle glass cellar storing
window glass wall looking
mirror glass bathroom shaving
lens glass laboratory magnifying
jar glass pantry storing
table wood parlour dining
chair wood parlour sitting
desk wood office working
shelf wood library storing
ladder wood garage climbing
fence wood farm enclosing
barrel wood cellar storing
pencil wood school drawing
violin wood stage playing
boat wood harbour sailing
oar wood harbour rowing
broom wood hall sweeping
crate wood market carrying
door wood wall closing
hammer metal workshop nailing
saw metal workshop cutting
nail metal workshop joining
wrench metal garage turning
anvil metal smithy forging
bell metal church ringing
anchor metal harbour mooring
shovel metal garden digging
rake metal garden gathering
needle metal attic sewing
knife metal kitchen slicing
key metal pocket opening
coin metal pocket paying
stove metal kitchen heating
bucket plastic farm carrying
hose rubber garden watering
comb plastic bathroom grooming
toothbrush plastic bathroom cleaning
ruler plastic school measuring
helmet plastic garage protecting
bin plastic street collecting
phone plastic pocket calling
basket straw market carrying
mat straw hall wiping
hat straw beach shading
roof straw farm covering
tyre rubber garage rolling
boot rubber farm walking
eraser rubber school erasing
balloon rubber park celebrating
ball rubber park playing
glove leather stable protecting
saddle leather stable riding
belt leather bedroom fastening
wallet leather pocket paying
whip leather stable driving
shoe leather hall walking
purse leather bedroom carrying
blanket wool bedroom warming
scarf wool bedroom warming
sock wool bedroom warming
carpet wool parlour decorating
sweater wool attic dressing
curtain cloth parlour shading
towel cloth bathroom drying
pillow cloth bedroom sleeping
tent cloth forest camping
flag cloth tower signalling
sail cloth harbour sailing
apron cloth bakery protecting
shirt cloth bedroom dressing
napkin cloth restaurant wiping
sack cloth mill carrying
rope hemp harbour tying
net hemp harbour fishing
book paper library reading
letter paper office informing
map paper office navigating
stamp paper office posting
newspaper paper street reading
ticket paper station travelling
poster paper street informing
kite paper park playing
bill paper restaurant paying
statue stone park decorating
millstone stone mill grinding
fountain stone park drinking
bench stone park sitting
bridge stone river crossing
tomb stone church burying
tile clay roof covering
oven clay bakery baking
brick clay wall building
pot clay garden planting
lamp glass hall lighting
candle wax church lighting
crayon wax school drawing
seal wax office closing
""".strip().splitlines()
]

# Trivia: per kind of entity three attributes, each with its values, question wordings and claim.
KINDS: dict[str, dict[str, tuple[list[str], list[str], str]]] = {
    "town": {
        "product": (
            GOODS,
            ["What is made in {e}?", "Which product comes from {e}?", "What does {e} make?"],
            "People in {e} make {a}.",
        ),
        "founder": (
            WOMEN[:12] + MEN[:12],
            ["Who founded {e}?", "Which person founded {e}?", "Who was the founder of {e}?"],
            "The founder of {e} was {a}.",
        ),
        "flag": (
            COLOURS,
            ["Which colour is the flag of {e}?", "What colour is the flag of {e}?"],
            "The flag of {e} is {a}.",
        ),
    },
    "beast": {
        "food": (
            FOODS,
            ["What does the {e} eat?", "What is the food of the {e}?", "What do {e}s feed on?"],
            "The {e} eats {a}.",
        ),
        "home": (
            HABITATS,
            ["Where does the {e} live?", "Where do you find the {e}?"],
            "The {e} lives in the {a}.",
        ),
        "skin": (
            COLOURS,
            ["Which colour is the skin of the {e}?", "What colour is the {e}?"],
            "The skin of the {e} is {a}.",
        ),
    },
    "scholar": {
        "field": (
            FIELDS,
            ["What did {e} study?", "Which subject did {e} study?", "What was {e} an expert in?"],
            "{e} studied {a}.",
        ),
        "instrument": (
            INSTRUMENTS,
            ["Which instrument did {e} play?", "What instrument did {e} play?"],
            "{e} played the {a}.",
        ),
        "pet": (
            ANIMALS,
            ["Which animal did {e} keep?", "What was the pet of {e}?"],
            "{e} kept a {a}.",
        ),
    },
}

# Commonsense: position in OBJECTS, question wordings, claim.
RELATIONS: dict[str, tuple[int, list[str], str]] = {
    "material": (
        1,
        ["What is {e} made of?", "Which material is {e} made of?"],
        "{E} is made of {a}.",
    ),
    "place": (
        2,
        ["What is the usual place for {e}?", "Where does {e} usually belong?"],
        "The usual place for {e} is the {a}.",
    ),
    "use": (3, ["What is {e} used for?", "What do people use {e} for?"], "{E} is used for {a}."),
}

# Passages: values, sentence, question about the person, question for the person.
TRAITS: dict[str, tuple[list[str], str, str, str]] = {
    "home": (TOWNS, "{p} lives in {a}.", "Where does {p} live?", "Who lives in {a}?"),
    "job": (JOBS, "{p} works as a {a}.", "What is the job of {p}?", "Who works as a {a}?"),
    "pet": (ANIMALS, "{p} owns a {a}.", "Which animal does {p} own?", "Who owns a {a}?"),
    "food": (FOODS, "{p} likes {a}.", "Which food does {p} like?", "Who likes {a}?"),
    "coat": (
        COLOURS,
        "{p} wears a {a} coat.",
        "Which colour is the coat of {p}?",
        "Who wears a {a} coat?",
    ),
    "day": (DAYS, "{p} travels on {a}.", "When does {p} travel?", "Who travels on {a}?"),
}
# The same questions with a pronoun, for conversations.
PRONOUN_QUESTIONS = {
    "home": "Where does {p} live?",
    "job": "What is {p} job?",
    "pet": "Which animal does {p} own?",
    "food": "Which food does {p} like?",
    "coat": "Which colour is {p} coat?",
    "day": "When does {p} travel?",
}

# Word problems, by level: story with question, and the sums that solve it (x, y, z are numbers).
STORIES: dict[int, list[tuple[str, str]]] = {
    1: [
        (
            "{p} has {x} {t}. {q} gives {p} {y} more {t}. How many {t} does {p} have now?",
            "{x} + {y}",
        ),
        (
            "{p} has {x} {t} and {q} has {y} {t}. How many {t} do they have together?",
            "{x} + {y}",
        ),
        ("{p} buys {x} {t} and then {y} more. How many {t} does {p} buy in all?", "{x} + {y}"),
        ("{p} has {x} {t}. {p} gives {y} to {q}. How many {t} are left?", "{x} - {y}"),
        ("{p} had {x} {t} and lost {y} of them. How many {t} are left?", "{x} - {y}"),
        (
            "{p} has {x} {t} and {q} has {y}. How many more {t} does {p} have than {q}?",
            "{x} - {y}",
        ),
    ],
    3: [
        (
            "There are {x} {c} with {y} {t} in each. How many {t} are there in all?",
            "{x} * {y}",
        ),
        ("{p} buys {x} {c} of {y} {t} each. How many {t} does {p} buy?", "{x} * {y}"),
        ("{p} sells {x} {t} every day for {y} days. How many {t} does {p} sell?", "{x} * {y}"),
    ],
    4: [
        (
            "{p} has {x} {t}. {q} gives {p} {y} more. Then {p} loses {z}. "
            "How many {t} does {p} have now?",
            "{x} + {y} - {z}",
        ),
        (
            "{p} has {x} {c} with {y} {t} in each and {z} more {t}. "
            "How many {t} does {p} have in all?",
            "{x} * {y} + {z}",
        ),
        (
            "{p} had {x} {t}. {p} gave {y} to {q} and then found {z}. "
            "How many {t} does {p} have now?",
            "{x} - {y} + {z}",
        ),
    ],
    5: [
        (
            "{p} has {x} {t} and {z} {s}. {p} buys {y} more {t}. How many {t} does {p} have now?",
            "{x} + {y}",
        ),
        (
            "{p} has {x} {t} and {q} has {z} {s}. {p} loses {y} {t}. "
            "How many {t} does {p} have now?",
            "{x} - {y}",
        ),
    ],
}
STORIES[2] = STORIES[1]
# Levels 7 to 9 are never trained: beyond 100, times beyond the table, three steps.
STORIES[7] = [story for story in STORIES[1] if "+" in story[1]]
STORIES[8] = STORIES[3]
STORIES[9] = [
    (
        "{p} has {x} {t}. {q} gives {p} {y} more. Then {p} finds {z} and {q} gives {p} {x} more. "
        "How many {t} does {p} have now?",
        "{x} + {y} + {z} + {x}",
    ),
    (
        "{p} has {x} {c} with {y} {t} in each. {p} finds {z} {t} and then finds {y} more. "
        "How many {t} does {p} have in all?",
        "{x} * {y} + {z} + {y}",
    ),
]
STORIES[6] = [story for story in STORIES[4] if "*" not in story[1]]
