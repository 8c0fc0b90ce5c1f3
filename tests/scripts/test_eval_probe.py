"""Stage 3 as its user runs it: a subprocess on small synthetic trees of dialogue files."""

import base64
import copy
import csv
import gzip
import html
import json
import math
import re
import sys
import tomllib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import f1_score, roc_auc_score

import eval_probe
from spikescore.report import plots
from spikescore.report.evaluation import Evaluation, read_item
from tests.helpers.running import ROOT, run_script

PNG = b"\x89PNG\r\n\x1a\n"
PLOTS = ("roc.png", "histogram.png", "roc_domains.png", "histogram_domains.png",
         "trajectories.png", "spikes.png", "spike_turns.png")  # fmt: skip


def dialogue(item_id, y, scores, *, domain="trivia", split="unseen", threshold=0.5, **fields):
    steps = [
        {
            "turn": turn,
            "prompt_type": "question" if turn == 1 else "critical",
            "prompt": f"prompt {turn}",
            "response": f"answer {turn} é",
            "n_response_tokens": 3 + turn,
            "perplexity": 1.5 + y + turn / 100 if y is not None else None,
            "metrics": {"probe_pred": score} if score is not None else {},
        }
        for turn, score in enumerate(scores, start=1)
    ]
    probe = {"path": "saplma.pkl", "kind": "saplma", "spike_threshold": threshold}
    return {
        "id": item_id,
        "question": "Which river?",
        "gold_answers": ["Ouse", "the Ouse"],
        "domain": domain,
        "group": None,
        "model": "demo",
        "nil_label": None if y is None else 1 - y,
        "metrics": {"probe_pred": list(scores), "probe": probe, "probe_split": split},
        "complete": True,
        "cot_steps": steps,
        **fields,
    }


def write(folder, records):
    folder.mkdir(parents=True, exist_ok=True)
    for record in records:
        (folder / f"{record['id']}.json").write_text(json.dumps(record), encoding="utf-8")


def make_domain(domain, n, rng, *, split=lambda place: "unseen", gap=0.2):
    """Every other item is hallucinated; its spike is higher by `gap` plus noise."""
    records = []
    for place in range(n):
        y = place % 2
        scores = np.full(8, 0.4)
        scores[3] += 0.2 + gap * y + 0.1 * rng.random()
        name, part = f"{domain}_{place}", split(place)
        records.append(dialogue(name, y, scores.tolist(), domain=domain, split=part))
    return records


run = partial(run_script, "eval_probe.py")


def evaluate(data, report, *options):
    done = run("--data_dir", data, "--report_dir", report, "--draws", 50, *options)
    assert done.returncode == 0, done.stderr
    return done, json.loads((report / "summary.json").read_text())


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """One in-domain folder (30 of 60 items are the probe's own), two others, and odd items."""
    data = tmp_path_factory.mktemp("tree") / "outputs"
    rng = np.random.default_rng(0)

    def split(place):
        return "train" if place < 20 else "val" if place < 30 else "test"

    write(data / "a" / "trivia", make_domain("trivia", 60, rng, split=split))
    write(data / "b" / "math", make_domain("math", 40, rng, gap=0.05))
    coqa = make_domain("coqa", 40, rng, gap=0.05)
    for place, record in enumerate(coqa):
        record["group"] = f"story {place // 4}"
        record["cot_steps"][0]["perplexity"] = None if place < 6 else 2.0 + place % 2
    odd = [
        dialogue("unlabelled", None, [0.1, 0.9, 0.1], domain="coqa", nil_judge={"judge": "auto"}),
        dialogue("unscored", 1, [None] * 4, domain="coqa"),
        dialogue("short", 1, [0.1, 0.9], domain="coqa"),
        dialogue("gap", 0, [0.1, None, 0.9, 0.2], domain="coqa"),
        dialogue("unfinished", 0, [0.1, 0.2, 0.9], domain="coqa", complete=False),
    ]
    write(data / "coqa", coqa + odd)
    (data / "coqa" / "run.json").write_text("[1, 2]")
    (data / "coqa" / "other.json").write_text('{"not": "a dialogue"}')
    (data / "coqa" / "coqa_99.error.json").write_text('{"id": "coqa_99"}')
    (data / "coqa" / "coqa_0.pkl").write_bytes(b"never opened")
    before = {path: json.loads(path.read_text()) for path in data.rglob("*.json")}
    report = data.parent / "report"
    done, summary = evaluate(data, report)
    return data, report, done, summary, before


def view_of(summary, kind, domain=None):
    (view,) = [
        view
        for view in summary["views"]
        if view["kind"] == kind and (domain is None or view["domains"] == [domain])
    ]
    return view


def scores_of(records):
    y = [1 - record["nil_label"] for record in records]
    peaks = []
    for record in records:
        s = [step["metrics"]["probe_pred"] for step in record["cot_steps"]]
        peaks.append(max(abs(s[k + 1] - 2 * s[k] + s[k - 1]) for k in range(1, len(s) - 1)))
    return np.array(y), np.array(peaks)


def records_of(before, domain):
    return [
        record
        for path, record in before.items()
        if path.stem.startswith(f"{domain}_") and "cot_steps" in record
    ]


def test_coverage_counts_every_item(tree):
    _, _, done, summary, _ = tree
    assert summary["coverage"] == {
        "found": 145, "copies": 0, "damaged": 0, "labelled": 144, "unlabelled": 1,
        "unread_by_the_judge": 1, "unfinished": 1, "unscored": 1, "scored_with_gaps": 1,
        "fewer_than_3_scores": 1, "first_answers_cut_off": 0, "excluded_probe_training": 30,
        "evaluated": 110,
    }  # fmt: skip
    assert "145 found" in done.stdout and "30 excluded probe training" in done.stdout
    assert "scored at some turns only" in done.stderr


def test_three_views_are_separate_and_right(tree):
    _, _, done, summary, before = tree
    trivia, math, coqa = (records_of(before, name) for name in ("trivia", "math", "coqa"))
    unseen = [record for record in trivia if record["metrics"]["probe_split"] == "test"]

    def value(view, method="spike_score"):
        return view["auroc"][method]["value"]

    inside, pool = view_of(summary, "in-domain"), view_of(summary, "pooled")
    macro = view_of(summary, "macro")
    assert inside["domains"] == ["trivia"] and inside["n"] == 30 and inside["in_domain"]
    assert value(inside) == pytest.approx(roc_auc_score(*scores_of(unseen)))
    assert pool["domains"] == ["coqa", "math"] and pool["n"] == 80
    assert value(pool) == pytest.approx(roc_auc_score(*scores_of(math + coqa)))
    each = [roc_auc_score(*scores_of(records)) for records in (math, coqa)]
    assert value(macro) == pytest.approx(np.mean(each))
    assert value(view_of(summary, "domain", "math")) == pytest.approx(each[0])
    assert pool["hallucination_rate"] == 0.5
    figure = pool["auroc"]["spike_score"]
    assert figure["low"] <= figure["value"] <= figure["high"]
    line = f"SpikeScore AUROC {figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"
    assert f"{line} n=80 hallucinated 50% (cross-domain, pooled over 2)" in done.stdout


def test_controls_and_own_n(tree):
    _, _, _, summary, _ = tree
    pool = view_of(summary, "pooled")["auroc"]
    assert pool["first_score"]["value"] == 0.5  # every first score is 0.4: all ties
    assert pool["dialogue_tokens"]["value"] == 0.5
    assert pool["perplexity"]["value"] == 1.0 and pool["perplexity"]["n"] == 74
    assert pool["domain_identity"]["value"] == 0.5  # both domains have one rate
    assert "domain_identity" not in view_of(summary, "macro")["auroc"]
    assert "domain_identity" not in view_of(summary, "in-domain")["auroc"]
    minus = view_of(summary, "pooled")["spike_score_minus"]
    own = pool["spike_score"]["value"]
    assert minus["first_score"]["value"] == pytest.approx(own - 0.5)
    assert minus["perplexity"]["n"] == 74


def test_threshold_is_carried_over(tree):
    _, _, done, summary, before = tree
    y, peaks = scores_of(records_of(before, "math") + records_of(before, "coqa"))
    found = view_of(summary, "pooled")["at_threshold"]
    assert found["threshold"] == 0.5
    assert found["f1"] == pytest.approx(f1_score(y, peaks >= 0.5))
    assert found["tpr"] == pytest.approx((peaks >= 0.5)[y == 1].mean())
    assert "lambda 0.500" in done.stdout


def test_json_gains_spike_score_and_nothing_else_changes(tree):
    data, _, _, _, before = tree
    for path, old in before.items():
        now = json.loads(path.read_text(encoding="utf-8"))
        if "cot_steps" not in old:
            assert now == old
            continue
        added = {key: now["metrics"].pop(key, None) for key in ("spike_score", "spike_turn")}
        assert now == old
        if path.stem.split("_")[0] in ("trivia", "math", "coqa"):
            assert added["spike_score"] == pytest.approx(scores_of([old])[1][0], abs=1e-12)
            assert added["spike_turn"] == 4
    unlabelled = json.loads((data / "coqa" / "unlabelled.json").read_text())["metrics"]
    assert unlabelled["spike_score"] == pytest.approx(1.6)
    for name in ("unscored", "short", "gap", "unfinished"):
        metrics = json.loads((data / "coqa" / f"{name}.json").read_text())["metrics"]
        assert "spike_score" not in metrics


def test_report_files(tree):
    data, report, done, summary, before = tree
    for name in PLOTS:
        assert (report / name).read_bytes().startswith(PNG)
        assert f"wrote {report / name}" in done.stdout
    rows = list(csv.DictReader((report / "scores.csv").open()))
    assert len(rows) == 145
    by_id = {row["id"]: row for row in rows}
    row = by_id["math_1"]
    assert (row["path"], row["domain"], row["y"]) == ("b/math/math_1.json", "math", "1")
    assert (row["n_turns"], row["answer_tokens"], row["dialogue_tokens"]) == ("8", "4.0", "60.0")
    old = before[data / "b" / "math" / "math_1.json"]
    assert [float(row[f"s_{k}"]) for k in range(1, 9)] == old["metrics"]["probe_pred"]
    assert by_id["gap"]["spike_score"] == by_id["unscored"]["s_1"] == ""
    markdown = (report / "summary.md").read_text()
    assert "## Cross-domain, macro over 2" in markdown and "## In-domain, held-out" in markdown
    assert summary["command"].startswith("python ") and "--data_dir" in summary["command"]


def test_report_page_holds_tables_plots_and_every_dialogue(tree):
    data, report, _, summary, before = tree
    text = (report / "report.html").read_text(encoding="utf-8")
    pool = view_of(summary, "pooled")["auroc"]
    for method in ("spike_score", "perplexity", "dialogue_tokens", "domain_identity"):
        figure = pool[method]
        assert f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]" in text
    assert text.count('src="data:image/png;base64,') == 7
    for name in PLOTS:
        assert base64.b64encode((report / name).read_bytes()).decode() in text
    index = json.loads(re.search(r'id="index">(.*?)</script>', text)[1])
    chunks = re.findall(r'id="chunk-\d+">(.*?)</script>', text)
    texts = [one for part in chunks for one in json.loads(gzip.decompress(base64.b64decode(part)))]
    assert len(index["id"]) == len(texts) == 145
    place = index["id"].index("math_1")
    old = before[data / "b" / "math" / "math_1.json"]
    assert index["scores"][place] == [round(s, 3) for s in old["metrics"]["probe_pred"]]
    assert (index["y"][place], index["turn"][place]) == (1, 4)
    gold, turns, _ = texts[place]
    split = np.array(index["splits"], dtype=object)[index["split"]]
    left_out = [bool(part in ("train", "val")) for part in split]
    odd = ("unlabelled", "unscored", "short", "gap", "unfinished")
    for name, own, kept in zip(index["id"], left_out, index["evaluated"], strict=True):
        assert kept == (not own and name not in odd), name
    assert gold == "Ouse; the Ouse" and turns[7] == ["critical", "prompt 8", "answer 8 é"]
    gap = index["id"].index("gap")
    assert index["scores"][gap] == [] and index["spike"][gap] is None and len(texts[gap][1]) == 4


def test_main_table_files_agree_with_the_summary(tree):
    _, report, _, summary, _ = tree
    rows = list(csv.DictReader((report / "table_main.csv").open()))
    found = {(row["view"], row["method"]): row for row in rows}
    assert len(found) == len(rows) == sum(len(view["auroc"]) for view in summary["views"])
    for view in summary["views"]:
        for method, figure in view["auroc"].items():
            row = found[view["title"], method]
            assert [float(row[key]) for key in ("auroc", "low", "high")] == [
                figure[key] for key in ("value", "low", "high")
            ]
            assert int(row["n"]) == figure["n"]
    pool = view_of(summary, "pooled")["auroc"]
    cells = [
        f"{pool[m]['value']:.3f} [{pool[m]['low']:.3f}, " for m in ("spike_score", "perplexity")
    ]
    for name in ("table_main.md", "table_main.tex"):
        text = (report / name).read_text()
        assert all(cell in text for cell in cells) and "(n=74)" in text
    sizes = (report / "table_main.md").read_text().split("| n (hallucinated) |")[1].split("\n")[0]
    for view in summary["views"]:  # of the view's items, whatever a method was measured on
        told = f"{view['n']} ({view['n_hallucinated'] / view['n']:.0%})"
        assert view["kind"] == "domain" or told in sizes, (view["title"], sizes)


def test_console_summary_and_page_begin_or_end_with_one_verdict_and_round_alike(tree):
    _, report, done, summary, _ = tree
    page = html.unescape((report / "report.html").read_text())
    texts = [done.stdout, (report / "summary.md").read_text(), page]
    assert summary["verdict"].startswith("SpikeScore")
    assert done.stdout[: done.stdout.index("wrote ")].rstrip().endswith(summary["verdict"])
    assert texts[1].splitlines()[2] == summary["verdict"]
    assert page.index(summary["verdict"]) < page.index("Main table")
    for view in summary["views"]:
        for figure in (view["auroc"]["spike_score"], view["spike_score_minus"]["first_score"]):
            told = [figure[name] for name in ("value", "low", "high")]
            numbers = [number for number in told if number is not None]
            sign = "" if figure is view["auroc"]["spike_score"] else "+"
            for number in numbers if view["kind"] != "domain" or not sign else ():
                assert all(f"{number:{sign}.3f}" in text for text in texts), (view["title"], number)


def test_the_page_says_what_was_asked_of_what_and_by_which_probe(tree):
    _, report, _, summary, _ = tree
    page = (report / "report.html").read_text()
    box = dict(re.findall(r"<dt>([^<]*)</dt><dd>([^<]*)</dd>", page))
    assert box["model"] == "demo" and "saplma.pkl" in box["probe"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", box["made"])
    assert box["version"].split(",")[0] == tomllib.loads(
        (ROOT / "pyproject.toml").read_text()
    )["project"]["version"]  # fmt: skip
    assert "Where spikes fall" in page and "Spikes by family of the prompt" in page


def test_spiky_dialogue_is_the_largest_and_readable(tree):
    _, report, _, _, before = tree
    evaluated = [
        record
        for name in ("trivia", "math", "coqa")
        for record in records_of(before, name)
        if record["metrics"]["probe_split"] not in ("train", "val")
    ]
    spikiest = evaluated[int(scores_of(evaluated)[1].argmax())]
    text = (report / "spiky_dialogue.md").read_text()
    assert spikiest["id"] in text.splitlines()[0]
    for expected in ("Which river?", "Ouse; the Ouse", "> prompt 8", "answer 8 é"):
        assert expected in text
    assert text.count("(the spike)") == 1 and "## Turn 4, critical" in text


def test_second_run_changes_no_file_and_include_train_keeps_them(tree, tmp_path):
    data, _, _, _, _ = tree
    times = {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    done, summary = evaluate(data, tmp_path / "again", "--include_train")
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*")} == times
    inside = view_of(summary, "in-domain")
    assert inside["n"] == 60 and "training items included" in inside["title"]
    assert "30 items that the probe was trained on are included" in done.stderr


def test_one_class_only_goes_on(tmp_path):
    records = [dialogue(f"x{place}", 1, [0.1, 0.2, 0.1 * place]) for place in range(12)]
    write(tmp_path / "data", records)
    done, summary = evaluate(tmp_path / "data", tmp_path / "report")
    # said once, not once per figure
    assert done.stdout.count("no AUROC for want of 10 hallucinated and 10 consistent") == 1
    assert "(12 and 0)" in done.stdout and "not computable" not in done.stdout
    assert "no evaluated item is consistent" in done.stderr
    assert view_of(summary, "pooled")["auroc"]["spike_score"]["value"] is None
    assert (tmp_path / "report" / "roc.png").read_bytes().startswith(PNG)
    page = (tmp_path / "report" / "report.html").read_text()
    assert "not computable: 12 hallucinated and 0 consistent" in page and ">n/c<" in page


def test_older_public_form_is_evaluated_and_never_written(tmp_path):
    data, rng = tmp_path / "popqa", np.random.default_rng(1)
    modern = make_domain("any", 40, rng)
    for record in modern:
        older = {"id": record["id"], "question": "q", "nli_label": record["nil_label"]}
        older["reasoning_chain"] = [
            {"step": place, "prompt": "p", "response": "r", "metrics": copy.copy(step["metrics"])}
            for place, step in enumerate(record["cot_steps"])
        ]
        write(data, [older])
    (data / "progress.json").write_text("{}")
    before = {path: path.read_bytes() for path in data.iterdir()}
    done, summary = evaluate(data, tmp_path / "report")
    assert {path: path.read_bytes() for path in data.iterdir()} == before
    view = view_of(summary, "pooled")
    assert view["domains"] == ["popqa"] and view["n"] == 40
    assert view["auroc"]["spike_score"]["value"] == pytest.approx(roc_auc_score(*scores_of(modern)))
    assert view["auroc"]["perplexity"]["value"] is None and view["auroc"]["perplexity"]["n"] == 0
    assert "carry no probe_split" in done.stderr and view["at_threshold"] is None


def bad_score(value):
    return lambda folder: write(folder, [dialogue("bad", 0, [0.1, value, 0.3])])


def bad_label(folder):
    write(folder, [dialogue("bad", 1, [0.1, 0.2, 0.3], nil_label="yes")])


def all_training(folder):
    write(folder, [dialogue(f"x{k}", k % 2, [0.1, 0.2, 0.3], split="train") for k in range(30)])


def broken_json(folder):
    folder.mkdir()
    (folder / "cut.json").write_text('{"id": ')


BAD = {
    "missing folder": (lambda folder: None, ["does not exist"]),
    "a file": (lambda folder: folder.write_text("x"), ["is not a folder"]),
    "empty folder": (lambda folder: folder.mkdir(), ["no dialogue", "reasoning_lite.py"]),
    "no scores": (
        lambda folder: write(folder, [dialogue("x", 1, [None] * 5)]),
        ["has probe scores", "metrics_probe.py"],
    ),
    "no labels": (
        lambda folder: write(folder, [dialogue("x", None, [0.1, 0.2, 0.3])]),
        ["labelled", "python scripts/label_answers.py --relabel"],
    ),
    "NaN": (bad_score(float("nan")), ["bad.json", "entry 2 of cot_steps", "probe_pred", "NaN"]),
    "string": (bad_score("0.2"), ["bad.json", "entry 2 of cot_steps", '"0.2"']),
    "true": (bad_score(True), ["bad.json", "entry 2 of cot_steps", "true"]),
    "label": (bad_label, ["bad.json", "nil_label", '"yes"']),
    "only training items": (all_training, ["30 excluded", "--include_train"]),
    "broken JSON": (broken_json, ["cut.json", "not valid JSON"]),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_gives_one_message_and_status_2(case, tmp_path):
    build, expected = BAD[case]
    build(tmp_path / "data")
    done = run("--data_dir", tmp_path / "data", "--report_dir", tmp_path / "report")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    for words in expected:
        assert words in done.stderr
    assert not (tmp_path / "report").exists()


def test_report_dir_that_is_a_file_is_named(tmp_path):
    records = [dialogue(f"x{k}", k % 2, [0.1, 0.2 * k, 0.3]) for k in range(4)]
    write(tmp_path / "data", records)
    (tmp_path / "report").write_text("in the way")
    done = run("--data_dir", tmp_path / "data", "--report_dir", tmp_path / "report")
    assert done.returncode == 2 and "choose another path" in done.stderr
    assert f'"{tmp_path / "report"}"' in done.stderr and "Traceback" not in done.stderr


def test_help_is_documentation_and_arguments_are_required():
    shown = run("--help")
    assert shown.returncode == 0
    for words in ("--data_dir", "--report_dir", "scores.csv", "spiky_dialogue.md", "y = 1"):
        assert words in shown.stdout
    missing = run("--data_dir", "x")
    assert missing.returncode == 2 and "--report_dir" in missing.stderr


def views_of(records):
    items = [
        read_item(record, Path(record["domain"]) / f"{record['id']}.json") for record in records
    ]
    return Evaluation(items, items, draws=200, seed=0).views()


def test_spike_score_without_the_first_answer():
    item = read_item(dialogue("x", 1, [1.0, 0.0, 0.25, 0.25, 0.5]), Path("x.json"))
    assert (item.spike_score, item.spike_turn) == (1.25, 2)
    assert item.spike_score_without_first == 0.25
    short = read_item(dialogue("x", 1, [1.0, 0.0, 0.25]), Path("x.json"))
    assert (short.spike_score, short.spike_score_without_first) == (1.25, None)


def test_domain_identity_uses_each_domains_own_rate():
    """Rates 1/4 and 3/4 of 40 items each: pairs won 30*30, tied 2*30*10, lost 10*10 of 40*40."""
    records = []
    for domain, positive in (("low", 10), ("high", 30)):
        for place in range(40):
            record = dialogue(f"{domain}{place}", int(place < positive), [0.1, 0.2, 0.3])
            records.append({**record, "domain": domain})
    (pool, macro, *domains) = views_of(records)
    assert (pool.kind, macro.kind, len(domains)) == ("pooled", "macro", 2)
    expected = (30 * 30 + 0.5 * 2 * 30 * 10) / 1600
    assert pool.methods["domain_identity"].value == pytest.approx(expected)
    assert macro.methods["spike_score"].value == 0.5


def test_questions_of_one_story_are_resampled_together():
    stories = make_domain("coqa", 200, np.random.default_rng(2))
    for place, record in enumerate(stories):
        # a story is one pair of dialogues, told ten times
        source = make_domain("coqa", 2, np.random.default_rng(place // 20), gap=0.03)[place % 2]
        record["cot_steps"], record["group"] = source["cot_steps"], f"story {place // 20}"
    ungrouped = [{**record, "group": None} for record in stories]
    numbered = [{**record, "group": place // 20} for place, record in enumerate(stories)]
    views = [views_of(records)[0] for records in (stories, ungrouped)]
    wide, narrow = (view.methods["spike_score"] for view in views)
    assert np.unique(views_of(numbered)[0].groups).size == 10  # 0 is a story too
    assert wide.value == narrow.value
    for intervals in (
        [area.interval for area in (wide, narrow)],
        [view.methods["spike_score"].delong_interval(view.groups) for view in views],
    ):
        widths = [high - low for low, high in intervals]
        assert widths[0] > 1.5 * widths[1]


def test_a_domain_met_in_training_is_in_domain_in_every_folder():
    records = [dialogue(f"x{k}", k % 2, [0.1, 0.2, 0.3], split="test") for k in range(4)]
    others = [dialogue(f"y{k}", k % 2, [0.1, 0.2, 0.3]) for k in range(4)]
    items = [read_item(record, Path("one") / f"{record['id']}.json") for record in records]
    items += [read_item(record, Path("two") / f"{record['id']}.json") for record in others]
    views = Evaluation(items, items, draws=10, seed=0).views()
    assert [view.kind for view in views] == ["in-domain", "domain", "domain"]
    assert [view.title for view in views[1:]] == [
        "trivia (one), in-domain",
        "trivia (two), in-domain",
    ]


def test_any_text_can_be_a_domain_and_is_drawn_as_it_stands():
    views = views_of(make_domain("cost $5_vs_$6 \udce9", 40, np.random.default_rng(0)))
    assert [view.title for view in views][-1] == "cost $5_vs_$6 ?, cross-domain"
    shown = plots.panels_of(views, "domain")
    for draw in (plots.roc_png, plots.histogram_png):
        assert draw(shown, r"$\no_such$").startswith(PNG)


# --- what is left out, and parts --------------------------------------------------------------


def spikes(n, domain="d", first=0, **fields):
    """n dialogues of which every other one is hallucinated and spikes higher, more or less."""
    rng = np.random.default_rng(first)
    records = make_domain(domain, n, rng, gap=0.1)
    return [{**record, **fields} for record in records]


def test_damaged_files_are_named_with_their_field_and_the_others_evaluated(tmp_path):
    write(tmp_path / "data", spikes(40))
    damaged = [dialogue(f"bad{place}", 1, [0.1, 0.9, 0.1, 0.2]) for place in range(6)]
    damaged[0]["metrics"]["probe"] = "x"
    damaged[1]["cot_steps"][2]["metrics"] = {"probe_pred": 10**400}
    damaged[2]["cot_steps"][0]["perplexity"] = math.nan
    damaged[3]["cot_steps"][1] = None
    damaged[4]["another program"] = {"x": [0.0, math.nan]}
    damaged[5]["config"] = {"dataset_path": 5}
    write(tmp_path / "data", damaged)
    (tmp_path / "data" / "empty.json").write_text("")
    nested = '{"a":' * 30000 + "1" + "}" * 30000
    (tmp_path / "data" / "nested.json").write_text(f'{{"cot_steps": [{nested}]}}')
    done = run("--data_dir", tmp_path / "data", "--report_dir", tmp_path / "report", "--draws", 5)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    summary = json.loads((tmp_path / "report" / "summary.json").read_text())
    assert summary["coverage"]["damaged"] == 8 and view_of(summary, "pooled")["n"] == 40
    assert "8 files are damaged" in done.stderr and "8 damaged" in done.stdout
    for name, field in (("bad0", "probe"), ("bad1", "probe_pred"), ("bad2", "perplexity"),
                        ("bad3", "cot_steps"), ("bad4", r"another program.x\[1\]"),
                        ("bad5", "dataset_path"), ("empty", "JSON"),
                        ("nested", "JSON")):  # fmt: skip
        assert re.search(rf'{name}\.json"[^;]*{field}', done.stderr), name


def test_copies_count_once_and_are_named(tmp_path):
    data = tmp_path / "data"
    records = spikes(40)
    write(data / "d", records)
    (data / "d" / ".ipynb_checkpoints").mkdir()
    changed = copy.deepcopy(records[3])
    changed["cot_steps"][0]["response"] = "another answer"
    for name, record in (
        (".ipynb_checkpoints/d_1-checkpoint", records[1]),
        ("d_2 (conflicted copy)", records[2]),
        ("d_3 (1)", changed),
    ):
        (data / "d" / f"{name}.json").write_text(json.dumps(record))
    write(data / "backup", records[4:6])
    write(data / "another run", [{**records[6], "cot_steps": changed["cot_steps"]}])
    done, summary = evaluate(data, tmp_path / "report")
    assert summary["coverage"]["copies"] == 2 and summary["coverage"]["evaluated"] == 41
    for name in ("d_2 (conflicted copy)", "d_3 (1)", "d_4", "d_5"):
        assert f'{name}.json" is a copy of' in done.stderr
    rows = {row["path"]: row for row in csv.DictReader((tmp_path / "report" / "scores.csv").open())}
    assert "d/d_3.json" in rows and "d/d_3 (1).json" not in rows
    assert "another run/d_6.json" in rows  # other answers: another run of the same question


def test_links_to_folders_are_followed(tmp_path):
    write(tmp_path / "data" / "one", spikes(30, "one"))
    write(tmp_path / "scratch" / "two", spikes(30, "two"))
    (tmp_path / "data" / "two").symlink_to(tmp_path / "scratch" / "two")
    _, summary = evaluate(tmp_path / "data", tmp_path / "report")
    assert view_of(summary, "macro")["domains"] == ["one", "two"]


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"model": "other"}, ["models", '"demo"', '"other"']),
        ({"config_hash": "b", "config": {"temperature": 1}}, ["settings", "temperature: 0 -> 1"]),
    ],
)
def test_dialogues_of_two_runs_are_refused(tmp_path, fields, words):
    one = {"config_hash": "a", "config": {"temperature": 0}}
    write(tmp_path / "data", spikes(20, **one) + spikes(20, "e", **{**one, **fields}))
    done = run("--data_dir", tmp_path / "data", "--report_dir", tmp_path / "report")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert all(word in done.stderr for word in words)


def test_answers_cut_off_are_told_and_the_figures_given_without_them(tmp_path):
    records = spikes(60)
    for place, limit in ((3, "length"), (5, "length"), (8, "timeout")):
        records[place]["cot_steps"][0]["finish_reason"] = limit
        records[place]["cot_steps"][3]["metrics"]["probe_pred"] = 0.4  # no spike at all
    write(tmp_path / "data", records)
    done, summary = evaluate(tmp_path / "data", tmp_path / "report")
    assert "3 first answers cut off" in done.stdout
    assert "3 of the 60 first answers were cut off (2 by length, 1 by timeout)" in done.stderr
    whole = [record for place, record in enumerate(records) if place not in (3, 5, 8)]
    (table,) = summary["splits"]
    rows = {row[0]: row for row in table["rows"]}
    for name, n, chosen in (("all", 60, records), ("without those cut off", 57, whole)):
        y, peaks = scores_of(chosen)
        assert rows[name][1] == f"{n}, {y.mean():.0%}"
        assert rows[name][2].startswith(f"{roc_auc_score(y, peaks):.3f} [")
    assert rows["those cut off"][1:3] == ["3, 67%", "not computable"]
    for name in ("summary.md", "report.html"):
        assert "first answers cut off" in (tmp_path / "report" / name).read_text()


def test_figures_by_a_field_of_meta(tmp_path):
    parts = {"local": spikes(30, "a", 1), "global": spikes(34, "b", 2), "": spikes(20, "c", 3)}
    for scope, records in parts.items():
        for record in records:
            record["meta"] = {"scope": scope} if scope else {}
            record["metrics"]["probe"]["train_domains"] = ["elsewhere"]
        write(tmp_path / "data" / records[0]["domain"], records)
    done, summary = evaluate(tmp_path / "data", tmp_path / "report", "--by", "meta.scope")
    pooled = next(table for table in summary["splits"] if "pooled" in table["caption"])
    rows = {row[0]: row for row in pooled["rows"]}
    assert list(rows) == ["global", "local", "(not said)"]
    for name, records in zip(("local", "global", "(not said)"), parts.values(), strict=True):
        value = roc_auc_score(*scores_of(records))
        assert rows[name][2].startswith(f"{value:.3f} [")
        assert f"SpikeScore {value:.3f} [" in done.stdout
    assert "By meta.scope" in (tmp_path / "report" / "summary.md").read_text()
    wrong = run(
        "--data_dir", tmp_path / "data", "--report_dir", tmp_path / "r", "--by", "meta.size"
    )
    assert wrong.returncode == 2 and "known: meta.scope" in wrong.stderr


def test_a_report_without_dialogues_holds_no_text_of_theirs(tmp_path):
    texts = {"question": "Which zebra?", "gold_answers": ["quagga"], "choices": ["okapi", "x"]}
    records = [{**record, **texts} for record in spikes(60, "a")]
    for record in records:
        for step in record["cot_steps"]:
            step |= {"prompt": "Sure of gnus?", "response": "Ibex."}
    write(tmp_path / "data", records)
    report, words = tmp_path / "report", ("zebra", "quagga", "okapi", "gnus", "Ibex")
    evaluate(tmp_path / "data", report)
    assert any(word in (report / "spiky_dialogue.md").read_text() for word in words)
    size = (report / "report.html").stat().st_size
    evaluate(tmp_path / "data", report, "--without_dialogues")  # and clears what was before
    for path in report.iterdir():
        content = path.read_bytes()
        assert not any(word.encode() in content for word in words), path
    page = (report / "report.html").read_text()
    assert 'id="chunk-0"' not in page and 'id="index"' not in page and len(page) < size
    assert records[0]["id"] not in page


def test_a_mean_of_flags_says_over_how_many_domains_it_is(tmp_path):
    """The third domain has one class: no false-positive rate, and no AUROC."""
    write(tmp_path / "data", spikes(40, "a") + spikes(40, "b"))
    write(tmp_path / "data", [dialogue(f"c{k}", 1, [0.1, 0.9, 0.1], domain="c") for k in range(12)])
    done, summary = evaluate(tmp_path / "data", tmp_path / "report")
    macro = view_of(summary, "macro")
    assert macro["auroc"]["spike_score"]["note"] == "mean over 2 of 3 domains"
    line = next(line for line in done.stdout.splitlines() if "lambda" in line and "macro" in line)
    assert "(2 of 3)" in line.split("FPR")[1] and "(2 of 3)" not in line.split("TPR")[0]
    assert re.search(r"SpikeScore AUROC \S+ \[.*\] \(2 of 3\) n=80", done.stdout)


def test_of_given_answers_it_says_how_often_the_wrong_one_scores_higher(
    tmp_path, monkeypatch, capsys
):
    rng = np.random.default_rng(4)
    won = {}
    for domain, gap in (("halueval", 0.2), ("truthfulqa", 0.03)):
        records = make_domain(domain, 40, rng, gap=gap)
        for place, record in enumerate(records):
            pair, name = f"q{place // 2}", ("right", "wrong")[place % 2]
            record |= {"id": f"{pair}.{name}", "pair_id": pair, "group": pair}
        write(tmp_path / "data" / domain, records)
        peaks = scores_of(records)[1]
        won[domain] = float((peaks[1::2] > peaks[::2]).mean())
    monkeypatch.setattr(sys, "argv", [
        "eval_probe.py", "--data_dir", f"{tmp_path}/data", "--report_dir", f"{tmp_path}/rep",
        "--draws", "200",
    ])  # fmt: skip
    assert eval_probe.main() == 0
    macro = (won["halueval"] + won["truthfulqa"]) / 2
    shown = capsys.readouterr().out
    assert f"SpikeScore paired accuracy {macro:.3f} [" in shown
    assert "pairs=40 (cross-domain, macro over 2)" in shown
    assert "first-answer probe paired accuracy 0.500 [" in shown  # all begin alike: ties
    told = json.loads((tmp_path / "rep/summary.json").read_text())["twins"]
    found = {(one["domain"], one["method"]): one for one in told}
    for domain, value in (("macro over 2", macro), *won.items()):
        one = found[domain, "SpikeScore"]
        assert one["accuracy"] == pytest.approx(value) and one["low"] <= value <= one["high"]
    assert ("macro over 2", "domain identity (oracle)") not in found
    rows = list(csv.DictReader((tmp_path / "rep/table_twins.csv").open()))
    assert len(rows) == len(told) and rows[0]["n_pairs"] == "40"
    for name in ("summary.md", "table_twins.md", "table_twins.tex", "report.html"):
        assert "Paired accuracy, cross-domain" in (tmp_path / "rep" / name).read_text()
    scores = list(csv.DictReader((tmp_path / "rep/scores.csv").open()))
    assert scores[0]["pair"] == "halueval/q0"
    write(tmp_path / "plain", spikes(24))
    monkeypatch.setattr(sys, "argv", [
        "eval_probe.py", "--data_dir", f"{tmp_path}/plain", "--report_dir", f"{tmp_path}/rep",
        "--draws", "5", "--without_dialogues",
    ])  # fmt: skip
    assert eval_probe.main() == 0  # nothing is left of what the report of before had beside it
    left = {path.stem for path in (tmp_path / "rep").iterdir()}
    assert "table_main" in left and not {"table_twins", "spiky_dialogue"} & left
