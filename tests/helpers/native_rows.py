"""A small row of every native schema, made for the tests.

Whatever a model must not see holds the word HIDDEN: gold answers (unless they stand among the
options), known wrong answers, solutions, labels' texts, documents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class Native:
    """A schema: `make(n)` is its n-th row; without a field of `required` a row is bad."""

    make: Callable[[int], Row]
    required: tuple[str, ...]
    per_row: int = 1


def svamp(n: int) -> Row:
    return {"ID": f"chal-{n}", "Body": f"Mia had {n} plums. She ate 1",
            "Question": "How many left?", "Equation": "HIDDEN",
            "Answer": 7000.0 + n, "Type": "HIDDEN"}  # fmt: skip


def coqa(n: int) -> Row:
    return {"source": "wiki", "id": f"story{n}", "story": f"Bo is {n}. He has a dog.",
            "questions": [{"input_text": "How old is Bo?", "turn_id": 1},
                          {"input_text": "What has he?", "turn_id": 2}],
            "answers": [{"input_text": "in his youth", "turn_id": 1},
                        {"input_text": "HIDDEN pet", "turn_id": 2}],
            "additional_answers": {"0": [{"input_text": "HIDDEN a"}, {"input_text": "HIDDEN b"}]},
            "name": "HIDDEN"}  # fmt: skip


def coqa_hub(n: int) -> Row:
    return {"source": "wiki", "story": f"Bo is {n}.", "questions": ["How old?", "Is he?"],
            "answers": {"input_text": ["in his youth", "HIDDEN"], "answer_start": [0, 0],
                        "answer_end": [1, 1]}}  # fmt: skip


def triviaqa(n: int) -> Row:
    return {"Question": f"Who was the {n}th?", "QuestionId": f"tc_{n}", "QuestionSource": "HIDDEN",
            "Answer": {"Value": "HIDDEN one", "Aliases": ["HIDDEN one", "HIDDEN two"],
                       "NormalizedValue": "HIDDEN"},
            "SearchResults": [{"Description": "HIDDEN"}]}  # fmt: skip


def triviaqa_hub(n: int) -> Row:
    return {"question": f"Who was the {n}th?", "question_id": f"tc_{n}",
            "question_source": "HIDDEN", "entity_pages": {"title": ["HIDDEN"]},
            "answer": {"value": "HIDDEN one", "aliases": ["HIDDEN two", "HIDDEN one"]}}  # fmt: skip


def triviaqa_squad(n: int) -> Row:
    qas = [{"id": f"tc_{n}--{n}_1.txt", "qid": f"tc_{n}", "question": f"Who was the {n}th?",
            "answers": [{"text": "HIDDEN", "answer_start": 3}]}]  # fmt: skip
    return {"paragraphs": [{"context": f"Evidence {n}.", "qas": qas}]}


def triviaqa_flashrag(n: int) -> Row:
    return {"id": f"test_{n}", "question": f"Who {n}?", "golden_answers": ["HIDDEN", "HIDDEN b"]}


def squad(n: int) -> Row:
    qas = [
        {"id": f"5733be28{n:016x}", "question": f"Who won in {n}?", "is_impossible": False,
         "answers": [{"text": "HIDDEN", "answer_start": 0}, {"text": "HIDDEN", "answer_start": 0}]},
        {"id": f"5a33be28{n:016x}", "question": f"Who lost in {n}?", "is_impossible": True,
         "answers": [], "plausible_answers": [{"text": "HIDDEN trap", "answer_start": 0}]},
    ]  # fmt: skip
    return {"title": "T", "paragraphs": [{"context": f"A passage of {n}.", "qas": qas}]}


def squad_hub(n: int) -> Row:
    return {"id": f"5733be28{n:016x}", "title": "HIDDEN", "context": f"Passage {n}.",
            "question": "Who?", "answers": {"text": ["HIDDEN"], "answer_start": [0]}}  # fmt: skip


def commonsenseqa(n: int) -> Row:
    return {"answerKey": "B", "id": f"c{n}abcdef", "question": {"question_concept": "HIDDEN",
            "stem": f"Of what is wire {n}?", "choices": [
                {"label": "A", "text": "iron"}, {"label": "B", "text": "copper"}]}}  # fmt: skip


def commonsenseqa_hub(n: int) -> Row:
    return {"id": f"c{n}abcdef", "question": f"Of what is wire {n}?", "question_concept": "HIDDEN",
            "choices": {"label": ["A", "B"], "text": ["iron", "copper"]},
            "answerKey": "B"}  # fmt: skip


def arc(n: int) -> Row:
    return {"id": f"Mercury_SC_40{n}", "question": {"stem": f"What boils at {n}?", "choices": [
                {"text": "ice", "label": "1"}, {"text": "tin", "label": "2"}]},
            "answerKey": "2"}  # fmt: skip


def arc_hub(n: int) -> Row:
    return {"id": f"NYSEDREGENTS_2015_8_{n}", "question": f"What boils at {n}?",
            "choices": {"text": ["ice", "tin"], "label": ["A", "B"]}, "answerKey": "B"}  # fmt: skip


def mmlu(n: int) -> Row:
    return {"question": f"Which group has order {n}?", "subject": "HIDDEN",
            "choices": ["one", "two", "three", "four"], "answer": n % 4}  # fmt: skip


def mmlu_simple_evals(n: int) -> Row:
    return {"": str(n), "Question": f"Which group has order {n}?", "A": "one", "B": "two",
            "C": "three", "D": "four", "Answer": "ABCD"[n % 4], "Subject": "HIDDEN"}  # fmt: skip


def mmlu_pro(n: int) -> Row:
    return {"question_id": n, "question": f"Which group has order {n}?", "src": "HIDDEN",
            "options": ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
                        "ten"], "answer": "ABCDEFGHIJ"[n % 10], "answer_index": n % 10,
            "cot_content": "HIDDEN", "category": "HIDDEN"}  # fmt: skip


def hellaswag(n: int) -> Row:
    return {"ind": n, "activity_label": "HIDDEN", "ctx_a": f"Bo has {n} shingles.", "ctx_b": "he",
            "ctx": f"Bo has {n} shingles. he", "split": "HIDDEN", "split_type": "HIDDEN",
            "label": str(n % 4), "endings": ["sits.", "runs.", "nails them.", "sells one."],
            "source_id": f"activitynet~v_{n // 2}"}  # fmt: skip


def sciq(n: int) -> Row:
    return {"question": f"What moves at {n}?", "distractor3": "lead", "distractor1": "salt",
            "distractor2": "sand", "correct_answer": "light",
            "support": "HIDDEN because it says that it does."}  # fmt: skip


def popqa(n: int) -> Row:
    return {"id": n, "subj": f"Town {n}", "prop": "HIDDEN", "obj": "HIDDEN a", "subj_id": n,
            "prop_id": 22, "obj_id": n, "s_aliases": "[]", "o_aliases": '["HIDDEN b"]',
            "s_pop": 100 + n, "o_pop": 9, "question": f"In what country is Town {n}?",
            "possible_answers": '["HIDDEN a", "HIDDEN b"]'}  # fmt: skip


def belebele(n: int) -> Row:
    return {"link": "HIDDEN", "question_number": n, "flores_passage": f"Passage {n}.",
            "question": "What?", "mc_answer1": "one", "mc_answer2": "two", "mc_answer3": "three",
            "mc_answer4": "four", "correct_answer_num": "3", "dialect": "HIDDEN",
            "ds": "HIDDEN"}  # fmt: skip


def gpqa(n: int) -> Row:
    return {"Record ID": f"rec{n}xyz", "Question": f"Which particle {n}?",
            "Correct Answer": "muon ", "Incorrect Answer 1": "pion", "Incorrect Answer 2": "kaon",
            "Incorrect Answer 3": "tau\n", "Explanation": "HIDDEN", "Subdomain": "HIDDEN",
            "High-level domain": "Physics", "Writer's Difficulty Estimate": "HIDDEN"}  # fmt: skip


def truthfulqa(n: int) -> Row:
    return {"Type": "HIDDEN", "Category": "HIDDEN", "Question": f"Why is {n} odd?",
            "Best Answer": "HIDDEN a", "Best Incorrect Answer": "HIDDEN d",
            "Correct Answers": "HIDDEN a; HIDDEN b;", "Incorrect Answers": "HIDDEN c; HIDDEN d",
            "Source": "HIDDEN"}  # fmt: skip


def truthfulqa_generation(n: int) -> Row:
    return {"type": "HIDDEN", "category": "HIDDEN", "question": f"Why is {n} odd?",
            "best_answer": "HIDDEN a", "correct_answers": ["HIDDEN a", "HIDDEN b"],
            "incorrect_answers": ["HIDDEN c"], "source": "HIDDEN"}  # fmt: skip


def truthfulqa_choice(n: int) -> Row:
    return {"question": f"Why is {n} odd?",
            "mc1_targets": {"choices": ["so", "thus", "hence"], "labels": [1, 0, 0]},
            "mc2_targets": {"choices": ["so", "HIDDEN yes", "thus", "HIDDEN no"],
                            "labels": [1, 1, 0, 0]}}  # fmt: skip


def truthfulqa_flat(n: int) -> Row:
    row = truthfulqa_choice(n)
    return {"question": row["question"],
            **{f"{name}_targets_{part}": row[f"{name}_targets"][part]
               for name in ("mc1", "mc2") for part in ("choices", "labels")}}  # fmt: skip


def truthfulqa_multi(n: int) -> Row:
    return {"id": n, **truthfulqa_choice(n), **truthfulqa_generation(n), "annotation": "HIDDEN",
            "lang": "eu"}  # fmt: skip


def halueval(n: int) -> Row:
    return {"knowledge": f"Known {n}.", "question": "What?", "right_answer": "HIDDEN r",
            "hallucinated_answer": "HIDDEN h"}  # fmt: skip


def bioasq(n: int) -> Row:
    return {"id": f"55031181e9bde6963400000{n}", "type": "factoid", "body": f"Which gene {n}?",
            "exact_answer": [["HIDDEN a", "HIDDEN b"]], "ideal_answer": ["HIDDEN ideal"],
            "documents": ["HIDDEN"], "snippets": [{"text": "HIDDEN snippet"}]}  # fmt: skip


def ragtruth(n: int) -> Row:
    return {"source_id": f"9000{n}", "task_type": "QA", "source": "MARCO",
            "source_info": {"question": f"how long {n}", "passages": "passage 1:Soak it.\n"},
            "prompt": "HIDDEN prompt", "id": str(n), "model": "HIDDEN", "temperature": 0.7,
            "labels": [{"start": 0, "end": 6, "text": "HIDDEN", "label_type": "Evident Conflict"}],
            "split": "HIDDEN", "quality": "good", "response": "HIDDEN answer"}  # fmt: skip


def defan(n: int) -> Row:
    return {"questions": f" Who won in {n}?", "answer": "HIDDEN a;HIDDEN b", "type": "name"}


def true_false(n: int) -> Row:
    return {"statement": f"Water {n} is wet.", "label": str(n % 2)}


def synthweb(n: int) -> Row:
    return {"doc": "HIDDEN", "scope": "word", "verbalizer_prompt": "Which word comes next?",
            "context": f"Half of document {n}.", "atom_text": "HIDDEN", "target_response": "HIDDEN",
            "incorrect_plausible_answer": "HIDDEN wrong", "bb_answer_score_max": n / 10,
            "row_seed": n, "doc_id": f"<urn:uuid:{n}>", "doc_idx": 0, "split_char_offset": 9,
            "slot_idx": 0.0, "target": "suffix", "typicality": None,
            "difficulty_check": "HIDDEN"}  # fmt: skip


def ipw(n: int) -> Row:
    return {"sample_id": f"traj_{n}", "conversations": [
                {"role": "system", "content": "HIDDEN system"},
                {"role": "user", "content": f"What is {n} times 2?"},
                {"role": "assistant", "content": "HIDDEN THOUGHT"},
                {"role": "tool", "name": "calculator", "content": "HIDDEN 6"}],
            "tool_calls": ["HIDDEN"], "ground_truth": "HIDDEN", "final_answer": "HIDDEN",
            "success": n % 2 == 0, "category": "High School Math",
            "teacher_model": "HIDDEN"}  # fmt: skip


def openhaldet(n: int) -> Row:
    return {"sample_id": f"arc_test_{n:06d}", "original_doc": {"text": "HIDDEN"},
            "structured_data": {
                "task_type": "multiple_choice", "system_instruction": "", "context": "",
                "question": f"Which wire is number {n}?", "choices": {"A": "iron", "B": "copper"},
                "ground_truths": ["B"], "incorrect_answers": []},
            "prompt": "HIDDEN prompt", "model_output_text": "HIDDEN output",
            "total_generated_tokens": 3, "saved_tokens_count": 3, "eval_reasoning": "HIDDEN why",
            "eval_category": "hallucination" if n % 2 else "correct"}  # fmt: skip


def math(n: int) -> Row:
    return {"problem": f"What is half of ${n}$?", "level": "HIDDEN", "type": "HIDDEN",
            "solution": "HIDDEN \\boxed{HIDDEN}"}  # fmt: skip


def math_500(n: int) -> Row:
    return {**math(n), "answer": "HIDDEN", "unique_id": f"test/algebra/{n}.json"}


def math_en(n: int) -> Row:
    return {"en": f"What is half of ${n}$?", "solution": "HIDDEN", "answer": "HIDDEN"}


def gsm8k(n: int) -> Row:
    return {"question": f"How many {n}?", "answer": "HIDDEN <<3+4=7>>\n#### 7123"}


def nq_open(n: int) -> Row:
    return {"question": f"who sang {n}", "answer": ["HIDDEN", "HIDDEN b"]}


def project(n: int) -> Row:
    return {"id": f"own-{n}", "domain": "trivia", "question": f"Capital {n}?",
            "gold_answers": ["HIDDEN"], "tier": "HIDDEN"}  # fmt: skip


SHAPES: dict[str, Native] = {
    "svamp": Native(svamp, ("Body", "Question", "Answer")),
    "coqa": Native(coqa, ("story", "questions", "answers"), per_row=2),
    "coqa hub": Native(coqa_hub, ("story", "questions", "answers"), per_row=2),
    "triviaqa": Native(triviaqa, ("Question", "Answer")),
    "triviaqa hub": Native(triviaqa_hub, ("question", "answer")),
    "triviaqa_squad": Native(triviaqa_squad, ("paragraphs",)),
    "triviaqa_flashrag": Native(triviaqa_flashrag, ("question", "golden_answers")),
    "squad": Native(squad, ("paragraphs",), per_row=2),
    "squad hub": Native(squad_hub, ("context", "question", "answers")),
    "commonsenseqa": Native(commonsenseqa, ("question", "answerKey")),
    "commonsenseqa hub": Native(commonsenseqa_hub, ("question", "answerKey", "choices")),
    "arc": Native(arc, ("question", "answerKey")),
    "arc hub": Native(arc_hub, ("question", "answerKey", "choices")),
    "mmlu": Native(mmlu, ("question", "choices", "answer")),
    "mmlu simple-evals": Native(mmlu_simple_evals, ("Question", "C", "Answer")),
    "mmlu_pro": Native(mmlu_pro, ("question", "options", "answer")),
    "hellaswag": Native(hellaswag, ("ctx", "endings", "label")),
    "sciq": Native(sciq, ("question", "correct_answer", "distractor3")),
    "popqa": Native(popqa, ("question", "possible_answers")),
    "belebele": Native(belebele, ("flores_passage", "question", "mc_answer2",
                                  "correct_answer_num")),
    "gpqa": Native(gpqa, ("Question", "Correct Answer", "Incorrect Answer 2")),
    "truthfulqa": Native(truthfulqa, ("Question", "Best Answer", "Correct Answers",
                                      "Incorrect Answers")),
    "truthfulqa generation": Native(truthfulqa_generation, ("question", "best_answer",
                                    "correct_answers", "incorrect_answers")),
    "truthfulqa choice": Native(truthfulqa_choice, ("question", "mc1_targets", "mc2_targets")),
    "truthfulqa flat": Native(truthfulqa_flat, ("question", "mc1_targets_choices",
                                                "mc2_targets_labels")),
    "truthfulqa multi": Native(truthfulqa_multi, ("question", "best_answer",
                                                  "correct_answers", "incorrect_answers")),
    "halueval": Native(halueval, ("question", "right_answer", "hallucinated_answer")),
    "bioasq": Native(bioasq, ("body", "type")),
    "ragtruth": Native(ragtruth, ("source_info", "task_type", "source_id", "labels", "prompt")),
    "defan": Native(defan, ("questions", "answer", "type")),
    "true_false": Native(true_false, ("statement", "label")),
    "synthweb": Native(synthweb, ("verbalizer_prompt", "context", "target_response", "doc_id")),
    "openhaldet": Native(openhaldet, ("structured_data", "sample_id", "model_output_text")),
    "ipw": Native(ipw, ("conversations", "ground_truth")),
    "math": Native(math, ("solution",)),
    "math 500": Native(math_500, ("solution",)),
    "math_en": Native(math_en, ("en", "solution")),
    "gsm8k": Native(gsm8k, ("question", "answer")),
    "nq_open": Native(nq_open, ("question", "answer")),
    "project": Native(project, ("question",)),
}  # fmt: skip
