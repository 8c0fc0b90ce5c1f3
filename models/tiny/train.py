"""Train the tiny chat model from scratch: tokenizer, weights, evaluation.

    python models/tiny/train.py                          # the shipped model, 2 CPU cores
    python models/tiny/train.py --steps 20 --out /tmp/m  # a smoke run of seconds
    python models/tiny/train.py --evaluate               # accuracy on datasets/tiny/*.json
    python models/tiny/train.py --evaluate --validation  # accuracy on questions kept for tuning

The run is step-based: the same seed gives the same batches whatever the machine's load.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE)]

from dialogues import WORDS, Document, draw_document  # noqa: E402
from world import DOMAINS, SEED, Item, World  # noqa: E402

from spikescore.data.question import first_message  # noqa: E402
from spikescore.dialogues.prompts import DEFAULT_SYSTEM_PROMPT  # noqa: E402

Batch = tuple[torch.Tensor, torch.Tensor]
SPECIALS = ["<|pad|>", "<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
PAD, BOS, END = 0, 1, 2
# A space stands before every text, so a word is the same token at the start of a turn as inside it.
CHAT_TEMPLATE = (
    "{{ '<|bos|>' }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|> ' + message['content'] | trim + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
N_CHUNKS = 40  # documents are drawn in this many portions, each at its own place in the curriculum


def keep_freed_memory() -> None:
    """Tell glibc to reuse freed memory; giving it back costs a sixth of the time."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-4, 0)  # M_MMAP_MAX: no separate mapping for large blocks
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
        mallopt(-2, 64 * 2**20)  # M_TOP_PAD


def train_tokenizer(
    world: World, seed: int, n_texts: int, vocab_size: int = 2048
) -> PreTrainedTokenizerFast:
    """Byte-level BPE on texts whose entities occur once, so that no token betrays a tier."""
    rng = random.Random(seed)
    texts = [" " + " ".join(rng.sample(WORDS, len(WORDS))) for _ in range(60)]
    texts += [" " + " ".join(map(str, range(101)))] * 100
    while len(texts) < n_texts:
        item = world.trivia(rng, one_off_share=1.0)
        texts.append(f" {item.question} {item.right.claim}")
        document = draw_document(rng, world, rng.random())
        # Trivia comes from the lines above alone; here its documents are left out.
        if not any(name in turn.text for turn in document for name in world.entity_tiers):
            texts += [" " + turn.text for turn in document[:8]]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", bos_token="<|bos|>", eos_token="<|end|>"
    )
    fast.add_special_tokens({"additional_special_tokens": SPECIALS[3:]})
    fast.chat_template = CHAT_TEMPLATE
    fast.model_max_length = 4096
    return fast


def encode(tokenizer: Tokenizer, documents: list[Document]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Ids and loss mask of each document, turn by turn as the chat template lays them out."""
    turns = [turn for document in documents for turn in document]
    pieces = iter(tokenizer.encode_batch([f"<|{turn.role}|> {turn.text}<|end|>" for turn in turns]))
    encoded = []
    for document in documents:
        ids, mask = [BOS], [0]
        for turn in document:
            piece = next(pieces).ids
            learned = int(turn.role == "assistant" and turn.learn)
            ids += piece
            mask += [0] + [learned] * (len(piece) - 1)
        encoded.append((np.array(ids, dtype=np.int64), np.array(mask, dtype=bool)))
    return encoded


def bucket_width(length: int) -> int:
    """Round a length up. Few distinct shapes matter: the CPU kernels are built anew for each."""
    grain = 16 if length <= 128 else 32 if length <= 256 else 128
    return -(-length // grain) * grain


def pad_batch(pairs: list[tuple[np.ndarray, np.ndarray]], width: int) -> Batch:
    """Right-pad documents to `width`: ids and the mask of learned tokens, both [n, width]."""
    ids = torch.full((len(pairs), width), PAD, dtype=torch.long)
    mask = torch.zeros((len(pairs), width), dtype=torch.bool)
    for row, (row_ids, row_mask) in enumerate(pairs):
        ids[row, : len(row_ids)] = torch.from_numpy(row_ids)
        mask[row, : len(row_mask)] = torch.from_numpy(row_mask)
    return ids, mask


def batch_stream(
    tokenizer: Tokenizer, world: World, seed: int, steps: int, batch_tokens: int, final_stage: bool
) -> Iterator[Batch]:
    """Yield exactly `steps` batches of documents of like length; no document sees another.

    The curriculum advances from chunk to chunk; documents that fill no batch wait for the next one.
    """
    rng = random.Random(seed)
    waiting: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}
    done = 0
    for chunk in range(N_CHUNKS):
        target = steps * (chunk + 1) // N_CHUNKS
        while done < target:
            progress = 1.0 if final_stage else chunk / N_CHUNKS
            documents = [
                draw_document(rng, world, progress, letters=not final_stage) for _ in range(1000)
            ]
            ready: list[Batch] = []
            for pair in encode(tokenizer, documents):
                width = bucket_width(len(pair[0]))
                bucket = waiting.setdefault(width, [])
                bucket.append(pair)
                if len(bucket) >= max(1, batch_tokens // width):
                    ready.append(pad_batch(waiting.pop(width), width))
            rng.shuffle(ready)
            for batch in ready[: target - done]:
                done += 1
                yield batch


def learned_positions(mask: torch.Tensor, grain: int = 512) -> tuple[torch.Tensor, torch.Tensor]:
    """Flat positions that predict a learned token, padded to a round number; and which are real."""
    at = mask[:, 1:].flatten().nonzero().squeeze(1)
    real = torch.arange(-(-len(at) // grain) * grain) < len(at)
    return F.pad(at, (0, len(real) - len(at))), real


def build_model(vocab_size: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=2,  # grouped queries: CPU generation is bound by reading the cache
        max_position_embeddings=4096,
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=END,
    )
    model = LlamaForCausalLM(config)
    model.generation_config.update(
        do_sample=True, temperature=0.2, top_p=0.7, max_new_tokens=64,
        pad_token_id=PAD, bos_token_id=BOS, eos_token_id=END,
    )  # fmt: skip
    return model


def learning_rate(step: int, steps: int) -> float:
    """Warm-up over 2% of the run, flat to 45%, then linear to zero; 1 is the peak."""
    return min(1.0, (step + 1) / max(1, steps // 50), (steps - step) / max(1, 0.55 * steps))


def train(args: argparse.Namespace) -> None:
    """Two stages, then save. The second, 15% as long, unlearns the option letters.

    After the first stage the letters were at chance, and a wrong letter before the right text makes
    an answer ambiguous; so the second one teaches the model to answer options by their text.
    """
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    torch.set_flush_denormal(True)  # tiny attention weights would slow the CPU down
    world = World()
    tokenizer = train_tokenizer(world, args.seed, args.tokenizer_texts)
    if args.stage_one:
        model = LlamaForCausalLM.from_pretrained(args.stage_one, dtype=torch.float32)
    else:
        model = build_model(len(tokenizer))
        run_stage(args, model, tokenizer, world, args.steps, args.lr, final_stage=False)
        model = model.half().float()  # as if it had been saved in between
    run_stage(
        args, model, tokenizer, world, max(1, args.steps * 3 // 20), args.lr / 2, final_stage=True
    )
    save(args, model, tokenizer)


def run_stage(
    args: argparse.Namespace,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    world: World,
    steps: int,
    peak: float,
    final_stage: bool,
) -> None:
    """Train in place for `steps` batches with fresh optimisers."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    rest = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    # Muon orthogonalises each matrix's step: about twice the progress per token of AdamW here.
    optimizers = [
        torch.optim.Muon(
            matrices, lr=peak, weight_decay=0.05, momentum=0.95,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(rest, lr=peak, betas=(0.9, 0.98), weight_decay=0.0),
    ]  # fmt: skip
    start, tokens, learned, losses = time.time(), 0, 0, []
    stream = batch_stream(
        tokenizer.backend_tokenizer,
        world,
        args.seed + final_stage,
        steps,
        args.batch_tokens,
        final_stage,
    )
    for step, (ids, mask) in enumerate(stream):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            # Causal attention and right padding: no mask is needed, padding is never a target.
            hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
            at, real = learned_positions(mask)
            logits = model.lm_head(hidden[:, :-1].flatten(0, 1)[at])
        targets = ids[:, 1:].flatten()[at].where(real, torch.tensor(-100))
        loss = F.cross_entropy(logits.float(), targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(rest, 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = peak * learning_rate(step, steps)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        tokens += int((ids != PAD).sum())
        learned += int(mask.sum())
        losses.append(loss.item())
        if (step + 1) % 50 == 0 or step + 1 == steps:
            seconds = time.time() - start
            print(
                f"step {step + 1}/{steps}  loss {np.mean(losses[-50:]):.3f}  "
                f"{tokens / 1e6:.2f}M tokens ({learned / 1e6:.2f}M learned)  "
                f"{tokens / seconds:.0f} tokens/s  {seconds / 60:.1f} min",
                flush=True,
            )
    if not math.isfinite(losses[-1]):
        raise SystemExit("the loss is not finite; nothing was saved")


def save(
    args: argparse.Namespace, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    args.out.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    # The template is kept inside tokenizer_config.json, where older readers look for it.
    template = args.out / "chat_template.jinja"
    if template.exists():
        settings = json.loads((args.out / "tokenizer_config.json").read_text())
        settings["chat_template"] = template.read_text()
        (args.out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
        template.unlink()


def load_questions(world: World, validation: bool) -> dict[str, list[dict[str, object]]]:
    """Rows with `first`, the first message, beside gold_answers, answer_type and tier."""

    def row(item: Item) -> dict[str, object]:
        return {
            "first": first_message(item), "gold_answers": item.gold(), "tier": item.tier,
            "answer_type": item.answer_type,
        }  # fmt: skip

    if validation:
        return {domain: [row(item) for item in world.validation[domain]] for domain in DOMAINS}

    loaded = {}
    for domain in DOMAINS:
        rows = json.loads((ROOT / "datasets" / "tiny" / f"{domain}.json").read_text())
        loaded[domain] = [
            {**fields, "first": first_message(SimpleNamespace(**fields))} for fields in rows
        ]
    return loaded


def is_right(text: str, row: dict[str, object]) -> bool:
    """True when the closing sentence states the gold answer (for options, their text)."""
    final = text.rsplit("The answer is ", 1)[-1].strip().rstrip(".")
    return "The answer is " in text and final.lower() == row["gold_answers"][0].lower()


@torch.no_grad()
def evaluate(args: argparse.Namespace) -> None:
    """Print first-answer accuracy per domain and tier, sampled at temperature 0.2 and top_p 0.7."""
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    tokenizer = AutoTokenizer.from_pretrained(args.out, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(args.out, dtype=torch.float32)
    for domain, rows in load_questions(World(), args.validation).items():
        answers: list[str] = []
        for start in range(0, len(rows), 64):
            chats = [
                [
                    {"role": "system", "content": DEFAULT_SYSTEM_PROMPT},
                    {"role": "user", "content": row["first"]},
                ]
                for row in rows[start : start + 64]
            ]
            inputs = tokenizer.apply_chat_template(
                chats, add_generation_prompt=True, padding=True, return_tensors="pt",
                return_dict=True,
            )  # fmt: skip
            out = model.generate(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"],
                do_sample=True, temperature=0.2, top_p=0.7, top_k=0, max_new_tokens=48,
            )  # fmt: skip
            new = out[:, inputs["input_ids"].shape[1] :]
            answers += [text.strip() for text in tokenizer.batch_decode(new, True)]
        right = [is_right(text, row) for text, row in zip(answers, rows, strict=True)]
        tiers: dict[str, list[bool]] = {}
        for row, ok in zip(rows, right, strict=True):
            tiers.setdefault(str(row["tier"]), []).append(ok)
        detail = "  ".join(f"{tier} {np.mean(oks):.2f}" for tier, oks in sorted(tiers.items()))
        print(f"{domain:13s} {np.mean(right):.3f}  n={len(rows)}  {detail}", flush=True)
        for row, text, ok in list(zip(rows, answers, right, strict=True))[: args.show]:
            print(f"    {'right' if ok else 'WRONG'}  gold {row['gold_answers'][0]!r}: {text}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=3300, help="optimiser steps")
    parser.add_argument("--stage_one", type=Path, help="start at stage two, from this model")
    parser.add_argument("--batch_tokens", type=int, default=4096, help="padded tokens per step")
    parser.add_argument("--tokenizer_texts", type=int, default=6000, help="texts it is trained on")
    parser.add_argument("--lr", type=float, default=4e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=HERE, help="where the model is, or will be")
    parser.add_argument("--evaluate", action="store_true", help="measure accuracy, do not train")
    parser.add_argument(
        "--validation", action="store_true", help="use questions that are not shipped"
    )
    parser.add_argument("--show", type=int, default=0, help="answers to print per domain")
    args = parser.parse_args()
    evaluate(args) if args.evaluate else train(args)


if __name__ == "__main__":
    main()
