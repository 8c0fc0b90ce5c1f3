"""The report page: what is in the file, and how it behaves in a browser."""

import base64
import gc
import gzip
import hashlib
import json
import re
import weakref
from html.parser import HTMLParser
from pathlib import Path

import pytest

from spikescore.report.page import Dialogue, Figure, Section, Table, write_page, writing
from spikescore.report.page.writing import CHUNK
from spikescore.report.text import markdown_table, tex_table
from tests.helpers.running import LIMIT

HOSTILE = (
    "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    "<!-- <script> &amp; $title \u202egnirts\u202c \u05e9\u05dc\u05d5\u05dd \u2028 'quoted' \x00"
)
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def dialogue(place, *, y=0, spike=0.5, turn=3, domain="trivia", n=6, **fields):
    scores = [0.25] * n
    scores[turn - 1] += spike / 2  # a lone bump of height h bends by 2 h
    return Dialogue(**{
        "id": f"item-{place}", "domain": domain, "y": y, "spike_score": spike, "spike_turn": turn,
        "scores": tuple(scores), "question": f"question {place}?", "gold": f"gold {place}",
        "split": "test", "judge": "auto: no",
        "turns": tuple(("critical", f"prompt {place}.{k}", f"answer {place}.{k}")
                       for k in range(1, n + 1)),
        **fields,
    })  # fmt: skip


def write(path, dialogues=(), *, title="A report", headline=("AUROC 0.75",), sections=(), **rest):
    write_page(path, title=title, headline=headline, sections=sections, dialogues=dialogues, **rest)
    return path


class Reader(HTMLParser):
    """Elements with their attributes and own text; fails on a closing tag that closes nothing."""

    VOID = {"meta", "link", "input", "img"}

    def __init__(self, path):
        super().__init__()
        self.elements, self.open = [], []
        self.feed(path.read_text(encoding="utf-8"))
        assert not self.open

    def handle_starttag(self, tag, attributes):
        element = (tag, dict(attributes), [])
        self.elements.append(element)
        if tag not in self.VOID:
            self.open.append(element)

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if self.open:
            self.open[-1][2].append(data)

    def all(self, tag, **attributes):
        return [
            (own, "".join(text))
            for name, own, text in self.elements
            if name == tag and attributes.items() <= own.items()
        ]


def unpack(reader):
    """Return the index and the [gold, turns] of all dialogues, read as the format says."""
    ((_, index),) = reader.all("script", id="index")
    chunks = [text for own, text in reader.all("script") if own.get("id", "").startswith("chunk-")]
    found = [json.loads(gzip.decompress(base64.b64decode(text))) for text in chunks]
    return json.loads(index), found


# --- the file ---------------------------------------------------------------------------------


def test_chunks_and_index_hold_every_dialogue_in_order(tmp_path):
    made = [dialogue(k, y=(0, 1, None)[k % 3], domain=f"d{k % 2}") for k in range(2 * CHUNK + 7)]
    made[5] = dialogue(5, scores=(0.1, float("nan"), 0.123456), spike_score=None, spike_turn=None)
    index, chunks = unpack(Reader(write(tmp_path / "page.html", iter(made))))
    assert [len(chunk) for chunk in chunks] == [CHUNK, CHUNK, 7] and index["chunk"] == CHUNK
    texts = [entry for chunk in chunks for entry in chunk]
    assert texts == [[one.gold, [list(turn) for turn in one.turns], one.judge] for one in made]
    assert index["id"] == [one.id for one in made] and index["y"] == [one.y for one in made]
    assert [index["domains"][place] for place in index["domain"]] == [one.domain for one in made]
    assert index["spike"][4:6] == [0.5, None] and index["turn"][4:6] == [3, None]
    assert index["scores"][4] == list(made[4].scores)
    assert index["scores"][5] == [0.1, None, 0.123]  # as it is shown


def test_hostile_text_stays_text(tmp_path):
    lone = "half of a pair: \ud800"
    table = Table(HOSTILE, (HOSTILE, "b"), ((HOSTILE, HOSTILE),), HOSTILE)
    section = Section(HOSTILE, (HOSTILE,), (table,), (Figure(HOSTILE, PIXEL, HOSTILE),))
    bad = dialogue(
        0, id=HOSTILE, domain=HOSTILE, question=HOSTILE, gold=lone, split=HOSTILE, judge=HOSTILE,
        turns=((HOSTILE, HOSTILE, HOSTILE),) * 6,
    )  # fmt: skip
    path = write(
        tmp_path / "page.html", [bad], title=HOSTILE, headline=[HOSTILE], sections=[section],
        settings=[(HOSTILE, HOSTILE)], footer=HOSTILE,
    )  # fmt: skip
    reader = Reader(path)
    assert len(reader.all("script")) == 4  # tables, one chunk, the index, ours
    assert [own["alt"].count("onerror") for own, _ in reader.all("img")] == [1]
    assert not any(
        name.startswith("on") for _, attributes, _ in reader.elements for name in attributes
    )
    shown = HOSTILE.replace("\x00", "")
    for tag in ("title", "h1", "footer", "td", "figcaption", "dt", "dd"):
        assert reader.all(tag)[0][1].replace("\x00", "") == shown
    index, chunks = unpack(reader)
    assert index["id"] == index["question"] == index["domains"] == [HOSTILE]
    assert chunks[0][0] == ["half of a pair: ?", [[HOSTILE] * 3] * 6, HOSTILE]


def test_policy_allows_our_script_and_style_alone(tmp_path):
    figure = Section("s", figures=(Figure("caption", PIXEL),))
    reader = Reader(write(tmp_path / "page.html", [dialogue(0)], sections=[figure]))
    ((policy, _),) = reader.all("meta", **{"http-equiv": "Content-Security-Policy"})
    rules = dict(rule.split(None, 1) for rule in policy["content"].split("; "))

    def hash_of(text):
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    ((_, style),) = reader.all("style")
    (script,) = [text for own, text in reader.all("script") if not own]
    assert rules == {
        "default-src": "'none'", "style-src": hash_of(style), "script-src": hash_of(script),
        "img-src": "data:", "base-uri": "'none'", "form-action": "'none'",
    }  # fmt: skip
    sources = [
        attributes[name]
        for _, attributes, _ in reader.elements
        for name in ("src", "href", "srcset", "action", "data")
        if name in attributes
    ]
    assert sources and all(source.startswith(("#", "data:")) for source in sources)
    assert "url(" not in style and "@import" not in style
    assert set(re.findall(r"https?://[^\"']+", style + script)) == {"http://www.w3.org/2000/svg"}


def test_links_and_labels_point_at_elements(tmp_path):
    table = Table("t", ("a",), (("1",),))
    sections = [Section("one", tables=(table,)), Section("two")]
    reader = Reader(write(tmp_path / "page.html", [dialogue(0)], sections=sections))
    ids = [own["id"] for _, own, _ in reader.elements if "id" in own]
    assert len(ids) == len(set(ids))
    for _, own, _ in reader.elements:
        for target in (own.get("href", ""), "#" + own.get("aria-labelledby", "")):
            assert not target.startswith("#") or target == "#" or target[1:] in ids
    assert [text for _, text in reader.all("a")][1:] == ["one", "two", "Dialogues"]


def test_numbers_are_aligned_right(tmp_path):
    cells = ("0.75", "0.747 [0.71, 0.78]", "+0.012", "45%", "5000 (41%)", "[-0.1, 0.2]", "1,234",
             "\u22120.5", "<0.001", "0.9 (n=74)", "1e-05", "2 \u00b1 0.3", "n/c",
             "0.4 [0.2, 0.5] (1 of 2) (n=60)", "not computable")  # fmt: skip
    words = ("none of them", "Llama-3.2", "", "3 of 5 domains", "a [0.1, 0.2]", "+")
    table = Table("t", ("name", *map(str, range(21))), (("row", *cells, *words),))
    reader = Reader(write(tmp_path / "page.html", sections=[Section("s", tables=(table,))]))
    aligned = [text for own, text in reader.all("td") if own.get("class") == "number"]
    remarks = [text for _, text in reader.all("span", **{"class": "remark"})]
    assert remarks == ["(1 of 2) (n=60)"]  # "0.9 (n=74)" has no interval and needs no second line
    assert aligned == [cell.removesuffix(remarks[0]) for cell in cells]
    heads = [own.get("class") for own, _ in reader.all("th", scope="col")]
    assert heads == [None] + ["number"] * 15 + [None] * 6


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match='table "t", row 2: 1 cells under 2 headings'):
        Table("t", ("a", "b"), (("1", "2"), ("3",)))


def test_dialogues_are_taken_as_they_come(tmp_path):
    alive = weakref.WeakSet()
    most = 0

    def coming():
        nonlocal most
        for place in range(4 * CHUNK):
            one = dialogue(place)
            alive.add(one)
            if place % CHUNK == CHUNK - 1:
                gc.collect()
                most = max(most, len(alive))
            yield one

    write(tmp_path / "page.html", coming())
    assert CHUNK <= most <= 2 * CHUNK + 1


def test_a_failure_leaves_the_old_page(tmp_path):
    def failing():
        yield dialogue(0)
        raise RuntimeError("disk")

    path = tmp_path / "page.html"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="disk"):
        write(path, failing())
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_same_content_same_bytes_and_no_dialogues_no_browser(tmp_path):
    one, two = (write(tmp_path / name, [dialogue(0)]).read_bytes() for name in ("a", "b"))
    assert one == two
    reader = Reader(write(tmp_path / "c"))
    assert not reader.all("script", id="index")
    ((section, _),) = reader.all("section", id="dialogues")
    assert "hidden" in section
    assert "Dialogues" not in [text for _, text in reader.all("a")]


def test_cells_that_stand_out_do_so_in_every_form(tmp_path):
    table = Table("t", ("a", "b"), (("x_1", "0.5"), ("y", "0.4")), bold=frozenset({(0, 1), (1, 0)}))
    assert markdown_table(table).splitlines()[2:] == ["| x_1 | 0.5 * |", "| y * | 0.4 |"]
    assert r"x\_1 & \textbf{0.5} \\" in tex_table(table)
    assert r"\textbf{y} & 0.4 \\" in tex_table(table)
    reader = Reader(write(tmp_path / "page.html", sections=[Section("s", tables=(table,))]))
    assert [own["class"] for own, _ in reader.all("td")] == ["number best", "number"]


def test_tables_in_markdown_and_latex():
    table = Table("A & B", ("method_1", "n"), (("a|b", "50%"), ("<x>", "[0, 1]")), "note #1")
    assert markdown_table(table).splitlines() == [
        "| method_1 | n |", "| --- | --- |", "| a\\|b | 50% |", "| <x> | [0, 1] |", "", "note #1",
    ]  # fmt: skip
    tex = tex_table(table)
    assert r"\caption{A \& B}" in tex and r"\begin{tabular}{lr}" in tex
    assert r"method\_1 & n \\" in tex and r"a\textbar{}b & 50\% \\" in tex
    assert r"\textless{}x\textgreater{} & {}[0, 1] \\" in tex and r"note \#1" in tex


# --- in a browser -----------------------------------------------------------------------------

SIZE, TURNS = 6000, 20
DOMAINS = ("trivia", "math", "coqa")
LONG_WORD = "w" * 3000


def spike_of(place):
    """Every dialogue's own SpikeScore, in no order: 7 and 6,000 have no common divisor."""
    return round((place * 7 + 1) % SIZE / SIZE, 4)


def turn_of(place):
    return 2 + place % (TURNS - 2)


def label_of(place):
    return (0, 1, None)[place % 3]


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    """6,000 dialogues; number 6 is hostile, number 12 has neither scores nor texts."""

    def coming():
        for place in range(SIZE):
            special = {}
            if place == 6:
                special = {
                    "question": HOSTILE,
                    "gold": HOSTILE + LONG_WORD,
                    "turns": (("critical", HOSTILE, LONG_WORD),) * TURNS,
                }
            if place == 12:
                special = {"scores": (), "spike_score": None, "spike_turn": None, "turns": ()}
            yield dialogue(
                place, y=label_of(place), spike=spike_of(place), turn=turn_of(place),
                domain=DOMAINS[place % 4 % 3], n=TURNS, **special,
            )  # fmt: skip

    cells = tuple(f"0.{k}00 [0.{k}00, 0.900]" for k in range(1, 10))
    wide = Table("A wide table", ("method", *"abcdefghi"), (("SpikeScore", *cells),) * 60, "note")
    sections = [Section("Main table", ("Text.",), (wide,), (Figure("A plot", PIXEL),))]
    path = tmp_path_factory.mktemp("page") / "report.html"
    return write(path, coming(), sections=sections)


@pytest.fixture
def visit(browser, page_file):
    """Return a function that opens the page; at the end nothing was complained of or fetched."""
    contexts, complaints, fetched = [], [], []

    def open_page(*, without=(), **options):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(1000 * LIMIT)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: fetched.append(request.url))
        for name in without:
            page.add_init_script(f"delete window.{name}")
        page.goto(page_file.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []
    outside = [url for url in fetched if not url.startswith("data:")]
    assert outside == [page_file.as_uri()] * len(contexts)


def ids_shown(page):
    """Ids of the rows that stand in the document, from the top."""
    return [
        text.rsplit(" ", 1)[1].replace("item-", "")
        for text in page.locator(".row .about").all_text_contents()
    ]


def ordered(places, key, *, descending=False):
    """Ids as the list should have them: missing keys last, ties by id."""
    known = sorted(place for place in places if key(place) is not None)
    known.sort(key=key, reverse=descending)
    return [str(place) for place in [*known, *(p for p in places if key(p) is None)]]


def check_reader(page, place):
    """The open dialogue is this one, its spike marked in the turns and in the drawing."""
    page.locator(".turn .prompt", has_text=f"prompt {place}.1").first.wait_for()
    turn = str(turn_of(place))
    reader = page.locator("#reader")
    assert reader.locator("h3").inner_text() == f"question {place}?"
    assert reader.locator(".response").all_inner_texts() == [
        f"answer {place}.{k}" for k in range(1, TURNS + 1)
    ]
    facts = reader.locator("dd").all_inner_texts()
    named = {0: "consistent", 1: "hallucinated", None: "not labelled"}[label_of(place)]
    assert facts[0].split(" ", 1)[1] == named and facts[1] == f"gold {place}"
    assert facts[2] == f"{spike_of(place):.3f} at turn {turn}" and facts[3] == "auto: no"
    assert [each.get_attribute("data-turn") for each in page.locator(".turn.spike").all()] == [turn]
    column = reader.locator(f'.hit[data-turn="{turn}"]')
    middle = float(column.get_attribute("x")) + float(column.get_attribute("width")) / 2
    point = reader.locator(".spike-point")
    assert float(point.get_attribute("cx")) == pytest.approx(middle, abs=0.01)
    heights = [float(point.get_attribute("cy")) for point in reader.locator("circle").all()]
    assert heights.index(min(heights)) == turn_of(place) - 1  # up is smaller
    assert reader.locator("svg").get_attribute("aria-label").endswith(f"Spike at turn {turn}.")


def test_a_dialogue_opens_by_click_and_by_keyboard(visit):
    page = visit()
    best = ordered([p for p in range(SIZE) if p != 12], spike_of, descending=True)
    assert ids_shown(page)[:10] == best[:10]
    page.locator(".row").nth(3).click()
    check_reader(page, int(best[3]))
    page.keyboard.press("Escape")
    assert page.locator(".turn").count() == 0
    assert page.evaluate("document.activeElement.id") == "list"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    check_reader(page, int(best[4]))
    page.keyboard.press("ArrowRight")
    check_reader(page, int(best[5]))
    page.keyboard.press("ArrowLeft")
    check_reader(page, int(best[4]))
    page.keyboard.press("Escape")
    page.keyboard.press("End")
    active = page.evaluate("document.getElementById('list').getAttribute('aria-activedescendant')")
    assert active == f"row-{SIZE - 1}"
    assert page.locator(f"#{active} .about").inner_text().endswith("item-12")
    page.keyboard.press("Enter")
    page.locator("#reader", has_text="This dialogue has no scores.").wait_for()


def test_every_control_is_reached_by_tab_and_shows_it(visit):
    page = visit()
    reached = []
    for _ in range(14):  # the page has no more
        page.keyboard.press("Tab")
        reached.append(page.evaluate(
            "[document.activeElement.id || document.activeElement.textContent,"
            " getComputedStyle(document.activeElement).outlineStyle]"
        ))  # fmt: skip
    names = [name for name, _ in reached]
    assert names[0] == "Skip to the results"
    assert [name for name, outline in reached if outline not in ("solid", "auto")] == []
    wanted = ["search", "domain", "label", "items", "sort", "direction", "list"]
    assert [name for name in names if name in wanted] == wanted


def test_sorting_filtering_and_search(visit):
    page = visit()
    everything = [place for place in range(SIZE) if place != 12]
    page.select_option("#sort", "id")
    assert ids_shown(page)[:5] == ["0", "1", "2", "3", "4"]
    page.locator("#direction").click()
    assert ids_shown(page)[:3] == ["5999", "5998", "5997"]
    page.select_option("#sort", "label")
    hallucinated = [place for place in everything if label_of(place) == 1]
    assert ids_shown(page)[:9] == [str(place) for place in hallucinated[:9]]
    page.select_option("#sort", "domain")
    coqa = [place for place in everything if DOMAINS[place % 4 % 3] == "coqa"]
    assert ids_shown(page)[:9] == [str(place) for place in coqa[:9]]
    page.select_option("#sort", "spike")
    page.select_option("#domain", label="math")
    page.select_option("#label", "1")
    math = [p for p in everything if DOMAINS[p % 4 % 3] == "math" and label_of(p) == 1]
    assert ids_shown(page)[:9] == ordered(math, spike_of, descending=True)[:9]
    assert page.locator("#count").inner_text() == f"{len(math)} of 6,000 dialogues"
    page.select_option("#label", "null")
    page.select_option("#domain", "")
    page.fill("#search", "QUESTION 577")
    found = [p for p in everything if label_of(p) is None and f"question {p}?".find("577") >= 0]
    assert sorted(map(int, ids_shown(page))) == found
    page.fill("#search", "no such words")
    assert ids_shown(page) == [] and page.locator("#count").inner_text().startswith("0 of")


def test_thousands_of_dialogues_do_not_lag(visit):
    page = visit()
    page.locator("#list").focus()
    page.keyboard.press("End")  # the last one, which has no turns
    for key in ("ArrowUp", "PageUp", "PageUp", "Home", "PageDown", "ArrowDown", "PageDown"):
        page.keyboard.press(key)
        assert 10 <= page.locator(".row").count() <= 60  # of thousands
    for word in ("question", "9", "5 7", "item-1", ""):
        page.fill("#search", word)
        assert 1 <= page.locator(".row").count() <= 60
    for top in (0, 100_000, 300_000):
        page.evaluate(f"document.getElementById('list').scrollTop = {top}")
        page.evaluate("() => new Promise(done => setTimeout(done, 100))")
        tops = page.locator(".row").evaluate_all("rows => rows.map(row => row.offsetTop)")
        assert 10 <= len(tops) <= 60 and top - 600 <= tops[0] <= top <= tops[-1]
    assert page.locator("*").count() < 2500


def test_a_text_of_megabytes_is_cut_and_says_so(tmp_path, browser):
    huge = "A<b>" * 500_000
    many = tuple(("reflective", "p" * 21_000, "r" * 21_000) for _ in range(600))
    dialogues = [
        dialogue(0, question=huge, gold=huge, id="a" * 5_000, domain="d" * 5_000),
        dialogue(1, turns=(("initial", huge, huge),)),
        dialogue(2, n=600, turns=many),
        dialogue(3),
    ]
    path = write(tmp_path / "report.html", dialogues)
    (texts,) = unpack(Reader(path))[1]
    assert path.stat().st_size < 2**20
    assert max(len(json.dumps(one)) for one in texts) < 700_000
    assert texts[1][1][0][2].startswith(huge[:20_000] + " [cut here: 20,000 of 2,000,000 char")
    assert len(texts[2][1]) == 501 and "100 more turns" in texts[2][1][-1][1]
    assert texts[3] == ["gold 3", [list(turn) for turn in dialogue(3).turns], "auto: no"]
    page = browser.new_page()
    page.goto(path.as_uri())
    page.focus("#list")
    page.select_option("#sort", "id")
    page.locator("#list").focus()
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    for told in ("4,000 of 2,000,000", "20,000 of 2,000,000", "100 more turns", "answer 3.6"):
        page.locator("#reader").get_by_text(told).first.wait_for()
        assert page.locator("*").count() < 4000
        page.keyboard.press("ArrowRight")
    page.close()


def test_hostile_and_long_text_is_shown_as_text_on_a_phone(visit):
    page = visit(viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True)

    def page_width():
        return page.evaluate("document.documentElement.scrollWidth")

    assert page_width() == 360
    assert page.evaluate("Array.from(document.querySelectorAll('.scroll'), box =>"
                         " box.scrollWidth > box.clientWidth)")[0]  # fmt: skip
    page.fill("#search", "onerror")
    page.locator(".row").tap()
    page.locator(".turn").first.wait_for()
    assert page_width() == 360
    assert not page.locator("#list").is_visible()
    texts = page.locator(".prompt").first.evaluate("element => element.textContent")
    assert texts == HOSTILE
    assert page.locator("#reader img, #reader script, #list img").count() == 0
    assert page.title() == "A report"
    page.get_by_role("button", name="Close").tap()
    assert page.locator("#list").is_visible() and page.locator("#reader h3").count() == 0


def test_print_shows_tables_whole_and_no_list(visit):
    page = visit()
    page.emulate_media(media="print")
    for hidden in ("nav", "#controls", "#list", "#reader .empty"):
        assert not page.locator(hidden).first.is_visible()
    assert page.get_by_text("The dialogues can be read in the HTML file itself.").is_visible()
    boxes = page.locator(".scroll").evaluate_all(
        "all => all.map(e => getComputedStyle(e).overflow)"
    )
    assert boxes == ["visible", "visible"]
    assert page.locator("tr").first.evaluate("e => getComputedStyle(e).breakInside") == "avoid"
    pdf = page.pdf(format="A4")
    assert pdf.startswith(b"%PDF") and 2 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 8


TEXT = ("ink", "soft", "link", "hallucinated", "consistent", "unlabelled", "spike")
GROUNDS = ("paper", "panel", "chosen", "spike-panel")


def luminance(colour):
    """WCAG 2 relative luminance of "#rgb" or "#rrggbb"."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * sign for sign in colour[1:])
    parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize(("mode", "place"), [("light", 0), ("dark", 1), ("print", 2)])
def test_every_colour_of_text_can_be_read_on_every_ground(mode, place):
    """At least 4.5:1, the least that WCAG 2 asks of small text."""
    style = (Path(writing.__file__).parent / "page.css").read_text()
    blocks = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    assert len(blocks) == 3
    light, own = (
        dict(re.findall(r"--([\w-]+): (#\w+);", block)) for block in (blocks[0], blocks[place])
    )
    colours = {**light, **own}
    ratios = {}
    for text in TEXT:
        for ground in GROUNDS:
            low, high = sorted(luminance(colours[name]) for name in (text, ground))
            ratios[text, ground] = (high + 0.05) / (low + 0.05)
    assert min(ratios.values()) >= 4.5, sorted(ratios.items(), key=lambda one: one[1])[:3]
    assert ratios["ink", "paper"] >= 7  # the text to read, as WCAG 2 asks at its strictest
    used = set(re.findall(r"(?<![-\w])(?:color|fill): var\(--([\w-]+)\)", style))
    # the rest fill shapes: points, bars, the band of the spike
    assert used - set(TEXT) == {"paper", "line", "spike-panel"}
    written = re.findall(r"(?:color|fill|background): (#\w+)", style)
    assert set(written) == {"#fff"}  # under plots alone


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_takes_the_colours_of_the_scheme(visit, scheme):
    page = visit(color_scheme=scheme)
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    shade = int(re.findall(r"\d+", colour)[0])
    assert (shade < 64) == (scheme == "dark")


def test_an_address_opens_its_dialogue(visit, page_file):
    page = visit()
    page.locator(".row").first.click()
    page.locator(".turn").first.wait_for()
    opened = page.locator("#reader a.about").inner_text().rsplit(" ", 1)[1]
    assert page.url.endswith(f"#{opened}")
    page.evaluate("location.hash = '#item-17'")
    check_reader(page, 17)
    page.get_by_role("button", name="Close").click()
    assert "#" not in page.url
    page.evaluate("location.hash = '#%'")  # no address at all
    assert page.locator(".turn").count() == 0


def test_evaluated_dialogues_come_first_and_the_probes_own_have_a_badge(tmp_path, browser):
    made = [
        dialogue(0, spike=0.9, split="train", evaluated=False),
        dialogue(1, spike=0.8, split="", evaluated=False),
        dialogue(2, spike=0.1), dialogue(3, spike=0.2), dialogue(3, spike=0.3, domain="math"),
    ]  # fmt: skip
    path = write(tmp_path / "report.html", made)
    page = browser.new_page()
    page.goto(f"{path.as_uri()}#math/item-3")  # the id alone is another's
    page.locator(".turn").first.wait_for()
    assert page.locator("#reader dd").nth(2).inner_text() == "0.300 at turn 3"
    assert ids_shown(page) == ["3", "3", "2", "0", "1"]
    badges = page.locator(".row .kind-badge").all_inner_texts()
    assert badges == ["the probe learnt from it", "left out of the figures"]
    for kind, ids in (("trained", ["0"]), ("evaluated", ["3", "3", "2"]), ("left out", ["1"])):
        page.select_option("#items", kind)
        assert ids_shown(page) == ids
    page.close()


def test_a_table_is_copied_as_latex_and_csv(tmp_path, browser):
    table = Table("t_1", ("a", "b"), (("x", "1"),))
    path = write(tmp_path / "report.html", sections=[Section("s", tables=(table,))])
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.goto(path.as_uri())
    for form, text in (("CSV", "a,b\nx,1\n"), ("LaTeX", tex_table(table))):
        page.get_by_role("button", name=f"Copy as {form}").click()
        page.get_by_role("button", name="Copied").wait_for()
        assert page.evaluate("navigator.clipboard.readText()") == text
        page.get_by_role("button", name=f"Copy as {form}").wait_for()
    context.close()


def test_a_browser_that_cannot_unpack_says_so(visit):
    page = visit(without=["DecompressionStream"])
    page.locator(".row").first.click()
    page.get_by_role("alert").wait_for()
    assert "DecompressionStream" in page.get_by_role("alert").inner_text()
    assert page.locator(".spike-point").count() == 1  # scores are in the index
