"""The probe-training section of the guide, command by command, with a real judge on loopback."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from signal import SIGINT, SIGKILL

import numpy as np
import pytest
import torch
import yaml
from packaging.requirements import Requirement
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from spikescore.data.reading import load_questions
from spikescore.files import locked
from spikescore.labels.entailment import ExactEntailment, entailment_messages
from spikescore.labels.judges import judge_messages, make_accuracy
from spikescore.measures.answer_run import AnswerRun
from spikescore.measures.clustering import cluster_many
from spikescore.measures.formulas import cluster_assignment_entropy
from spikescore.measures.run_folder import read_run
from spikescore.measures.run_plan import BRIEF, RunSettings, make_plan
from spikescore.measures.samples import AnswerPrompt
from spikescore.measures.self_questions import option_tokens, p_true_prompt
from spikescore.model.chat import ChatFormat
from spikescore.pickles import load_pickle
from tests.helpers.oracles import states_at
from tests.helpers.real_server import serve
from tests.helpers.running import ROOT, TINY, run_script, start_script, wait_until

TRIVIA = ROOT / "datasets" / "tiny" / "trivia.json"
SEP = "semantic-entropy-probes"
GENERATE = f"{SEP}/semantic_uncertainty/generate_answers.py"
COMPUTE = f"{SEP}/semantic_uncertainty/compute_uncertainty_measures.py"
OFFLINE = ["--metric=auto", "--entailment_model=exact", "--no-wandb"]


def generate(folder, *flags, model=TINY, **options):
    command = [GENERATE, f"--model_name={model}", f"--output_dir={folder}"]
    return run_script(*command, "--model_max_new_tokens=24", *flags, **options)


# --- the whole chain --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def judge_model(tmp_path_factory):
    """A judge trained here to reply in form: every answer is right, no two answers are alike.

    Wise it is not, but it is a real chat model, and its verdicts are known. A verdict is one token
    of its tokenizer, which makes it quick to learn.
    """
    folder = tmp_path_factory.mktemp("judge")
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    verdicts = ["VERDICT: CONSISTENT", "VERDICT: NEUTRAL"]
    tokenizer.add_tokens(verdicts)
    questions = load_questions(TRIVIA).questions[:30]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=4096,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = [1.0]
    while max(losses[-20:]) > 0.01 and len(losses) < 300:
        n = len(losses) // 2
        question, other = questions[n % 30], questions[(n + 7) % 30]
        one, two = (
            f"{'It may be so. ' * (n % 7)}The answer is {q.gold_answers[0]}."
            for q in (question, other)
        )
        if len(losses) % 2:
            messages = judge_messages(question=question, answer=one)
        else:
            messages = entailment_messages((question.question, one, two))
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        reply = f"{verdicts[1 - len(losses) % 2]}{tokenizer.eos_token}"
        known, said = (
            tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, reply)
        )
        labels = torch.tensor([[-100] * len(known) + said])
        loss = model(input_ids=torch.tensor([known + said]), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_generate_measure_train_score_evaluate(judge_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("chain")
    run, probe, outputs = folder / "run", folder / "probe.pkl", folder / "outputs"
    with serve(judge_model, folder) as url:
        judge = f"llm_{judge_model}"
        env = {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": "none"}
        # the guide's flags, its numbers made small
        generated = generate(
            run, "--dataset=trivia", "--num_samples=30", "--random_seed=42", "--no-compute_p_ik",
            "--no-compute_p_ik_answerable", "--p_true_num_fewshot=10", "--num_generations=4",
            "--num_few_shot=0", "--brief_prompt=chat", "--no-get_training_set_generations",
            f"--metric={judge}", f"--entailment_model={judge}", "--max_workers_for_entailment=8",
            env={**env, "WANDB_API_KEY": "", "HOME": str(folder)},
        )  # fmt: skip
    assert generated.returncode == 0, generated.stderr
    assert list((run / "wandb").glob("offline-run-*"))  # no key: logged offline
    found = read_run(run)
    assert len(found.validation) == 30 and not found.measures["failed"]
    entropies = found.measures["uncertainty_measures"]["cluster_assignment_entropy"]
    for entry, entropy in zip(found.validation.values(), entropies, strict=True):
        assert entry["most_likely_answer"]["accuracy"] == 1.0  # the judge's verdict
        # no two different answers mean the same to it
        texts = [re.sub(r"[\s.]+$", "", text).casefold() for text, *_ in entry["responses"]]
        shares = np.array([texts.count(text) for text in set(texts)]) / 4
        assert entropy == pytest.approx(-(shares * np.log(shares)).sum(), abs=1e-9)
    assert max(entropies) > min(entropies)

    trained = run_script(f"{SEP}/probes_trainer.py", "--data_dirs", run, "--save_path", probe)
    assert trained.returncode == 0, trained.stderr
    settings = {
        "model_path": str(TINY), "dataset_path": str(TRIVIA), "output_dir": str(outputs),
        "sampling": {"strategy": "random", "n": 12, "seed": 1}, "max_steps": 4,
        "max_new_tokens": 24,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(settings))
    for command in (
        ["reasoning_lite.py", "--config", folder / "config.json"],
        ["metrics_probe.py", "--json_dir", outputs, "--pkl_dir", outputs, "--probe_path", probe],
        ["eval_probe.py", "--data_dir", outputs, "--report_dir", folder / "report"],
    ):
        done = run_script(*command)
        assert done.returncode == 0, done.stderr
    assert (folder / "report" / "summary.md").exists()
    scored = [json.loads(path.read_text()) for path in outputs.glob("trivia-*.json")]
    assert len(scored) == 12 and all(len(r["metrics"]["probe_pred"]) == 4 for r in scored)


# --- what the run folder holds ----------------------------------------------------------------


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small") / "run"
    flags = ["--dataset", TRIVIA, "--num_samples=14", "--num_generations=3", "--num_few_shot=2"]
    done = generate(folder, *flags, "--p_true_num_fewshot=3", *OFFLINE)
    assert done.returncode == 0, done.stderr
    return folder, flags


def test_positions_and_likelihoods_are_those_of_a_plain_pass(small_run):
    folder, _ = small_run
    found = read_run(folder)
    model = LlamaForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    questions = {question.id: question for question in load_questions(TRIVIA).questions}
    examples = tuple(questions[i] for i in found.details["few_shot"])
    prompt = AnswerPrompt(ChatFormat(tokenizer, enable_thinking=False), BRIEF["default"], examples)
    for question_id, entry in list(found.validation.items())[:5]:
        answer = entry["most_likely_answer"]
        before = prompt.ids(questions[question_id])
        ids = before + tokenizer(answer["response"], add_special_tokens=False)["input_ids"]
        n = len(answer["token_log_likelihoods"])
        if len(ids) - len(before) != n:  # the tokenizer would have cut the answer otherwise
            continue
        states = states_at(model, ids, [len(before) - 1, len(ids) - 1], dtype=torch.float32)
        for name, expected in zip(
            ("emb_last_tok_before_gen", "emb_tok_before_eos"), states, strict=True
        ):
            assert answer[name].shape == (7, 1, 256)
            assert np.abs(answer[name][:, 0] - expected).max() < 0.02
        with torch.no_grad():
            raw = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), dim=-1)
        at = torch.arange(len(before) - 1, len(ids) - 1)
        expected = raw[at, torch.tensor(ids)[at + 1]]
        assert answer["token_log_likelihoods"] == pytest.approx(expected.tolist(), abs=1e-3)


def test_few_shot_examples_are_asked_in_neither_split(small_run):
    found = read_run(small_run[0])
    used = {*found.details["few_shot"], *found.details["p_true_examples"]}
    assert len(used) == 5
    assert not used & (found.train.keys() | found.validation.keys())
    assert not found.train.keys() & found.validation.keys()


def test_measures_are_those_of_the_answers(small_run):
    found = read_run(small_run[0])
    answers = [[text for text, *_ in entry["responses"]] for entry in found.validation.values()]
    ids = cluster_many([(None, texts) for texts in answers], ExactEntailment(), strict=True)
    measures = found.measures["uncertainty_measures"]
    assert found.measures["semantic_ids"] == ids
    expected = [cluster_assignment_entropy(one) for one in ids]
    assert measures["cluster_assignment_entropy"] == pytest.approx(expected)
    assert all(0 <= value <= 1 for value in measures["p_true"])
    assert len(found.measures["train_ids"]) == len(found.train)


def test_p_true_is_the_next_token_probability(small_run):
    found = read_run(small_run[0])
    model = LlamaForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()
    prompt = AnswerPrompt(ChatFormat(AutoTokenizer.from_pretrained(TINY), enable_thinking=False))
    parts = [load_pickle(path) for path in sorted(small_run[0].glob("parts/p_true-*.pkl"))]
    examples = {key: entry for part in parts for key, entry in part.items()}
    assert list(examples) and set(examples) == set(found.details["p_true_examples"])
    questions = {question.id: question for question in load_questions(TRIVIA).questions}
    judge = make_accuracy("auto")
    for key, entry in examples.items():
        answer = entry["most_likely_answer"]
        (answer["accuracy"],) = judge.judge_many([(questions[key], answer["response"])])
    shown = [examples[key] for key in found.details["p_true_examples"]]
    begin, token = option_tokens(prompt)
    for entry in list(found.validation.values())[:4]:
        ids = p_true_prompt(entry, shown, prompt) + begin
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1].double()
        assert entry["p_true"] == pytest.approx(
            float(torch.softmax(logits, dim=-1)[token]), abs=1e-4
        )


# --- going on, other settings, mistakes -------------------------------------------------------


@pytest.mark.parametrize("signal", [SIGKILL, SIGINT])
def test_stopped_and_run_again_gives_the_same_run(small_run, tmp_path, signal):
    folder, flags = small_run
    again = tmp_path / "again"
    command = [
        GENERATE, f"--model_name={TINY}", f"--output_dir={again}", "--model_max_new_tokens=24",
        *flags, "--p_true_num_fewshot=3", *OFFLINE, "--batch_size=2",
    ]  # fmt: skip
    process = start_script(*command)
    parts = again / "parts"
    wait_until(lambda: len(list(parts.glob("validation-*.pkl"))) > 3, process)
    process.send_signal(signal)
    _, errors = process.communicate()
    kept = {path.name: load_pickle(path) for path in parts.glob("*.pkl")}
    assert not (again / "uncertainty_measures.pkl").exists()
    if signal == SIGINT:
        assert process.returncode == 130 and "Traceback" not in errors
        told = f"{len(kept)} of 28 questions are answered and kept"
        assert told in errors and "run the same command to go on" in errors
    (parts / "validation-00001.pkl").write_bytes(b"broken")
    done = run_script(*command)
    assert done.returncode == 0 and "validation-00001.pkl" in done.stderr, done.stderr
    one, two = read_run(folder), read_run(again)
    for name, part in kept.items():  # what was kept was not asked again
        ((key, entry),) = part.items()
        if name != "validation-00001.pkl":
            found = two.validation[key]["most_likely_answer"]["emb_tok_before_eos"]
            assert np.array_equal(found, entry["most_likely_answer"]["emb_tok_before_eos"])
    for split in ("validation", "train"):
        assert list(getattr(one, split)) == list(getattr(two, split))
        for key, entry in getattr(one, split).items():
            other = getattr(two, split)[key]
            for place, answer in enumerate(entry["responses"]):
                assert other["responses"][place][0] == answer[0]
                assert other["responses"][place][1] == pytest.approx(answer[1], abs=1e-4)
            first, second = entry["most_likely_answer"], other["most_likely_answer"]
            assert second["response"] == first["response"]
            for name in ("emb_tok_before_eos", "emb_last_tok_before_gen"):
                np.testing.assert_allclose(second[name], first[name], rtol=4e-3, atol=4e-3)
    assert one.measures["ids"] == two.measures["ids"]
    assert one.measures["semantic_ids"] == two.measures["semantic_ids"]
    for name, values in one.measures["uncertainty_measures"].items():
        other = two.measures["uncertainty_measures"][name]
        assert other == pytest.approx(values, abs=5e-4, nan_ok=True), name
    assert not list(parts.glob("validation-*"))


def test_each_question_is_told_of_when_it_is_answered_and_when_it_was(tmp_path):
    settings = RunSettings(
        model_name=str(TINY), dataset=str(TRIVIA), num_samples=4, num_generations=2, num_few_shot=0,
        model_max_new_tokens=8, batch_size=3, get_training_set_generations=False,
        compute_p_true=False, output_dir=str(tmp_path),
    )  # fmt: skip
    plan = make_plan(settings, ROOT / "datasets")
    told = []

    def answered(question, entry):
        n_kept = len(list(tmp_path.glob("parts/*.pkl")))
        told.append((question.id, entry["most_likely_answer"]["response"], n_kept))

    assert AnswerRun(plan, tmp_path).generate(answered) == 0
    assert [n for *_, n in told] == [1, 2, 3, 4]  # the others are not answered yet
    first = {name: response for name, response, _ in told}
    assert len(first) == 4
    told.clear()
    again = AnswerRun(plan, tmp_path)
    assert again.generate(answered) == 0
    assert {name: response for name, response, _ in told} == first and len(told) == 4
    assert "model" not in vars(again)  # nothing was left to ask


def test_another_run_on_the_folder_is_told(small_run):
    folder, flags = small_run
    with locked(folder):
        done = generate(folder, *flags, "--p_true_num_fewshot=3", *OFFLINE)
    assert done.returncode == 2 and "is in use by process" in done.stderr


def test_another_model_or_other_questions_under_the_same_names_are_refused(tmp_path):
    model, data, folder = tmp_path / "model", tmp_path / "q.json", tmp_path / "run"
    shutil.copytree(TINY, model)
    rows = json.loads(TRIVIA.read_text())[:12]
    data.write_text(json.dumps(rows))
    flags = [f"--dataset={data}", "--num_few_shot=0", "--num_generations=2", *OFFLINE,
             "--no-compute_p_true", "--no-get_training_set_generations"]  # fmt: skip
    assert generate(folder, *flags, model=model).returncode == 0
    whole = folder / "validation_generations.pkl"
    entries = load_pickle(whole)
    key = next(iter(entries))
    whole.write_bytes(pickle.dumps({name: e for name, e in entries.items() if name != key}))
    weights = LlamaForCausalLM.from_pretrained(model)
    with torch.no_grad():
        weights.lm_head.weight.mul_(1.5)
    weights.save_pretrained(model)
    done = generate(folder, *flags, model=model)
    assert done.returncode == 2 and "models: weights of" in done.stderr, done.stderr
    assert load_pickle(whole).keys() == entries.keys() - {key}
    changed = [{**row, "question": f"{row['question']} Really?"} for row in rows]
    data.write_text(json.dumps(changed))
    done = generate(folder, *flags, model=model)
    assert done.returncode == 2 and "of the data set has changed" in done.stderr


def test_as_many_examples_of_p_true_as_fit_are_shown(small_run, monkeypatch):
    folder, _ = small_run
    details = read_run(folder).details
    run = AnswerRun(make_plan(RunSettings(**details["args"]), ROOT / "datasets"), folder)
    examples = [run.entries["p_true"][key] for key in details["p_true_examples"]]
    for entry in examples:
        entry["most_likely_answer"]["accuracy"] = 1.0
    begin, _ = option_tokens(run.prompt)
    entries = [entry for split in ("validation", "train") for entry in run.entries[split].values()]
    longest = [
        max(len(p_true_prompt(entry, examples[:n], run.prompt) + begin) for entry in entries)
        for n in range(4)
    ]
    assert longest == sorted(set(longest))
    for n in range(4):
        for room, expected in ((longest[n], n), (longest[n] + 1, n)):
            monkeypatch.setattr(AnswerRun, "_max_context", room)
            assert run._that_fit(examples) == examples[:expected]
    monkeypatch.setattr(AnswerRun, "_max_context", longest[0] - 1)  # one question does not fit
    assert len(run._that_fit(examples)) < 3


def test_other_settings_are_refused_and_measures_can_be_made_anew(small_run, tmp_path):
    folder, flags = small_run
    other = generate(folder, *flags, "--temperature=0.5", "--p_true_num_fewshot=3", *OFFLINE)
    assert other.returncode == 2 and "(temperature: 1.0 there, 0.5 now)" in other.stderr
    before = load_pickle(folder / "uncertainty_measures.pkl")
    (folder / "uncertainty_measures.pkl").unlink()
    done = run_script(COMPUTE, "--data_dir", folder, "--entailment_model=exact", "--no-wandb")
    assert done.returncode == 0, done.stderr
    after = load_pickle(folder / "uncertainty_measures.pkl")
    assert before["uncertainty_measures"].keys() == after["uncertainty_measures"].keys()
    assert before["semantic_ids"] == after["semantic_ids"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--dataset=trivai", *OFFLINE], "did you mean trivia"),
        (["--dataset=trivia", *OFFLINE, "--metric=best"], 'metric "best"'),
        (["--dataset=trivia", *OFFLINE, "--entailment_model=best"], 'entailment model "best"'),
        (["--dataset=trivia", *OFFLINE, "--metric=llm_x"], "OPENAI_API_KEY"),
        (["--dataset=trivia", *OFFLINE, "--num_few_shot=500"], "are needed as examples"),
        (["--dataset=trivia", *OFFLINE, "--num_samples=0"], "must be 1 or more"),
        (["--dataset=trivia", *OFFLINE, "--batch_size=many"], "--batch_size"),
        (["--dataset=trivia", *OFFLINE, "--dtype=float8"], "float32"),
    ],
)
def test_a_mistake_is_named_and_leaves_nothing_behind(flags, words, tmp_path):
    done = generate(tmp_path / "run", *flags, env={"OPENAI_API_KEY": ""})
    assert done.returncode == 2 and words in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("*.pkl"))


def test_a_folder_without_a_run_is_named(tmp_path):
    for folder, words in ((tmp_path, "generate_answers.py"), (tmp_path / "no", "does not exist")):
        done = run_script(COMPUTE, "--data_dir", folder, "--entailment_model=exact", "--no-wandb")
        assert done.returncode == 2 and words in done.stderr


def test_a_plain_prompt_ends_an_answer_with_its_line():
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    chat = ChatFormat(tokenizer, enable_thinking=False)
    question = load_questions(TRIVIA).questions[0]
    prompt = AnswerPrompt(chat, "Be brief.", use_template=False)
    assert prompt.text(question) == f"Be brief.\n\nQuestion: {question.question}\nAnswer:"
    ends = prompt.stop_ids()
    assert all("\n" in tokenizer.decode([token]) for token in ends)
    line_end = tokenizer("a\n", add_special_tokens=False)["input_ids"][-1]
    assert line_end in ends


def test_the_conda_environment_is_that_of_requirements_txt():
    text = (ROOT / SEP / "sep_enviroment.yaml").read_text()
    environment = yaml.safe_load(text)
    assert environment["name"] == "se_probes"
    (pip,) = [part["pip"] for part in environment["dependencies"] if isinstance(part, dict)]
    assert pip == ["-r ../requirements.txt"]  # seen from the file, as conda reads it
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pinned = [line for line in lines if line and not line.startswith("#")]
    assert all(len(Requirement(line).specifier) == 1 for line in pinned)
