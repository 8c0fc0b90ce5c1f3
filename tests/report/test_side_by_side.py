"""Two runs compared: paired where they share items, by themselves where they do not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from spikescore.errors import UserError
from spikescore.files import write_json
from spikescore.report.side_by_side import Run, SideBySide, read_run
from spikescore.stats.trajectory import apply
from tests.helpers.books import make_book
from tests.helpers.factories import make_record
from tests.helpers.running import run_script


def compared(one, other, draws=100):
    return SideBySide(Run("A", [("K", "8")], one), Run("B", [("K", "9")], other), draws=draws)


def of(compared, view="macro", method="spike_score"):
    sides = compared.paired if compared.n else compared.whole
    both = next(one for one in compared.entries(sides) if one[0].name == method)
    return compared.difference(both, view)


def test_shared_items_are_paired_whatever_their_order_and_labels_are_each_runs_own():
    one = make_book(seeds=1)
    order = np.random.default_rng(1).permutation(200)  # of 240, in another order
    other = one.take(order)
    other.items = [replace(item, y=1 - item.y if place % 5 == 0 else item.y)
                   for place, item in enumerate(other.items)]  # fmt: skip
    both = compared(one, other)
    assert both.n == 200
    areas, found = of(both, "pooled")
    wanted = []
    for book in (one.take(np.sort(order)), other):
        areas_by_hand = []
        for domain in book.splits:
            there = book.splits[domain] == ""
            spikes = apply("max_abs_d2", book.turns["saplma", domain, 0])
            areas_by_hand.append(roc_auc_score(book.y[there], spikes[there]))
        wanted.append(np.mean(areas_by_hand))
    assert [area.value for area in areas] == pytest.approx(wanted)
    assert found.value == pytest.approx(wanted[0] - wanted[1])
    assert found.interval[0] > 0  # fewer labels are right


def test_what_is_common_to_both_runs_is_not_in_the_interval():
    book = make_book()
    both = compared(book, make_book())
    _, same = of(both)
    assert same.value == 0 and same.interval == (0, 0) and same.p_bootstrap == 1
    renamed = make_book()
    renamed.items = [replace(item, id=f"other-{item.id}") for item in renamed.items]
    apart = compared(book, renamed)
    _, alone = of(apart)
    assert apart.n == 0 and alone.value == 0 and alone.interval[0] < 0 < alone.interval[1]
    assert "no item in common" in apart.tables()[0].note


def test_a_difference_is_over_the_aurocs_that_both_runs_have():
    """In B no answer of d2 is hallucinated: what A has on d2 is in no difference."""
    one, other = make_book(seeds=1), make_book(seeds=1, seed=1)
    other.items = [replace(item, y=0) if item.domain == "d2" else item for item in other.items]
    gaps = np.flatnonzero(other.domains == "d1")[:5]
    for key in other.turns:
        other.turns[key][gaps] = np.nan
    areas, found = of(compared(one, other))
    wanted = []
    for trained in ("d0", "d1", "d2"):
        each = []
        for tested in {"d0", "d1"} - {trained}:
            here = one.domains == tested
            here[gaps] = False
            own = [
                roc_auc_score(
                    book.y[here], apply("max_abs_d2", book.turns["saplma", trained, 0])[here]
                )
                for book in (one, other)
            ]
            each.append(own[0] - own[1])
        wanted.append(np.mean(each))
    assert found.value == pytest.approx(np.mean(wanted)) and found.parts == (4, 6)
    assert [area.parts for area in areas] == [(6, 6), (4, 6)]
    assert abs(found.value - (areas[0].value - areas[1].value)) > 1e-3
    assert found.n == 155 and found.interval
    assert "(4 of 6)" in compared(one, other).lines()[0]


def test_an_item_of_another_split_is_in_no_pair():
    one, other = make_book(n=100), make_book(n=100)
    other.splits["d0"] = np.where(np.arange(300) % 2 == 0, other.splits["d0"], "train")
    areas, _ = of(compared(one, other), "pooled")
    n = {domain: int((one.splits[domain] == "").sum()) for domain in one.splits}
    # only even items of d1 and d2 are unseen by both probes of d0
    here = (one.domains != "d0") & (np.arange(300) % 2 == 0)
    assert here.sum() == 100 and n["d0"] == 200
    assert areas[0].n == 300  # the other probes still see all
    sides = compared(one, other).paired
    assert all((side.items("pooled", "d0")[0] == here).all() for side in sides)


def test_the_page_shows_both_and_marks_what_differs(tmp_path):
    worse = make_book(seed=1)
    worse.turns = {key: np.flip(values, 0).copy() for key, values in worse.turns.items()}
    both = compared(make_book(), worse)
    assert both.settings().rows == (("K", "8", "9"),)
    assert both.settings().bold == {(0, 1), (0, 2)}
    both.write(tmp_path, "python compare")
    page, text = ((tmp_path / name).read_text() for name in ("report.html", "compare.md"))
    line, *others = both.lines()
    assert [one.split(",")[1].split()[0] for one in others] == ["pooled", "in-domain"]
    assert line in page
    areas, found = of(both)
    for told in (f"{areas[0].value:.3f} [", f"{areas[1].value:.3f} [", f"{found.value:+.3f} ["):
        assert told in line and told in page and told in text
    macro = both.tables()[0]
    row = next(place for place, row in enumerate(macro.rows) if row[0] == "SpikeScore")
    assert (row, 1) in macro.bold


def test_files_that_cannot_be_read_are_told(tmp_path, caplog):
    for place in range(4):
        record = make_record(f"q{place}", y=place % 2, turns=4, domain="d", model="m")
        for turn, step in enumerate(record["cot_steps"]):
            step["metrics"] = {"probe_pred": (turn * place) % 3 / 3}
        write_json(tmp_path / f"q{place}.json", record)
    assert read_run(str(tmp_path)).damaged == 0
    (tmp_path / "q3.json").write_text("{")
    run = read_run(str(tmp_path))
    assert run.damaged == 1 and run.book.y.size == 3
    assert "1 files are damaged" in caplog.text and "q3.json" in caplog.text


def test_runs_that_cannot_be_compared_are_refused(tmp_path):
    other = make_book()
    other.splits = {"elsewhere": other.splits["d0"]}
    with pytest.raises(UserError, match="no training domain in common.*d0, d1, d2 and elsewhere"):
        compared(make_book(), other)
    make_book().save(tmp_path / "book.pkl")
    assert read_run(str(tmp_path / "book.pkl")).book.y.size == 240
    done = run_script("scripts/compare_reports.py", tmp_path / "book.pkl", tmp_path / "none",
                      "--report_dir", tmp_path / "out")  # fmt: skip
    assert done.returncode == 2 and "none" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
