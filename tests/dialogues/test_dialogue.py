"""Rendering a conversation piece by piece against rendering it whole."""

from __future__ import annotations

import time

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from spikescore.dialogues.config import Config
from spikescore.dialogues.running import identity_of
from spikescore.errors import UserError
from spikescore.model.chat import ChatFormat
from tests.helpers.running import TINY

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
DROPPING_TEMPLATE = (  # keeps only the last answer, as templates that strip thinking do in part
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role != 'assistant' or loop.last %}<|{{ m.role }}|>{{ m.content }}</s>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def sentencepiece_like(**space) -> PreTrainedTokenizerFast:
    """A tokenizer whose spaces are marks before words, so that a start of text is special."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    if space.pop("normalizer", False):
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(**space)
    tokenizer.decoder = decoders.Metaspace()
    special = ["<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>"]
    text = ["the answer is forty two because the river is long", "let me look again at it"]
    tokenizer.train_from_iterator(
        text * 20, trainers.BpeTrainer(vocab_size=120, special_tokens=special)
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=special[3:],
    )


def make_chat(kind: str, template: str) -> ChatFormat:
    if kind == "tiny":
        tokenizer = AutoTokenizer.from_pretrained(TINY)
    elif kind == "normalizer":
        tokenizer = sentencepiece_like(normalizer=True)
    else:
        tokenizer = sentencepiece_like(prepend_scheme=kind)
    if kind != "tiny":
        tokenizer.chat_template = template
    return ChatFormat(tokenizer, enable_thinking=False)


@pytest.mark.parametrize("kind", ["tiny", "always", "first", "never", "normalizer"])
@pytest.mark.parametrize("template", [TEMPLATE, DROPPING_TEMPLATE])
def test_going_on_from_an_earlier_rendering_gives_the_ids_of_the_whole(kind, template):
    chat = make_chat(kind, template)
    messages = [{"role": "system", "content": "the answer"}, {"role": "user", "content": " is it "}]
    said = ["forty two", " the river ", "", "is </s> long", "it<|user|>is", "because  the river\n"]
    before = None
    for answer in said:
        before = chat.rendering(messages, before)
        assert before.ids == chat.render(messages)
        messages += [
            {"role": "assistant", "content": answer},
            {"role": "user", "content": f"let me look again {answer}"},
        ]
    if template == TEMPLATE:
        kept, _ = chat._shared(before, chat.rendering(messages).text)
        assert kept > len(before.ids) // 2  # most is not tokenised again


DATED = (
    "{%- if not date_string is defined %}{%- set date_string = strftime_now('%d %b %Y') %}"
    "{%- endif %}{% macro day() %}{{ strftime_now('%A %H:%M') }}{% endmacro %}"
    "Today is {{ date_string }}, {{ day() }}." + TEMPLATE
)


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "Etc/GMT+12"])
def test_a_template_that_writes_the_date_writes_one_that_never_changes(zone, monkeypatch):
    monkeypatch.setenv("TZ", zone)  # two zones that never have the same date
    time.tzset()
    chat = make_chat("first", DATED)
    text = chat.rendering([{"role": "user", "content": "it"}]).text
    assert text.startswith("Today is 26 Jul 2024, Friday 00:00.")
    assert chat.server_options == {"date_string": "26 Jul 2024"}


@pytest.mark.parametrize("change", ["{{ range(99999) | random }}", "{{ lipsum() }}"])
def test_a_template_of_chance_is_refused(change):
    chat = make_chat("first", change + TEMPLATE)
    with pytest.raises(UserError, match="another text each time"):
        identity_of(Config(), chat)


def test_the_identity_follows_what_the_model_is_shown():
    def prompts(template=TEMPLATE, **settings):
        return identity_of(Config(**settings), make_chat("first", template))["prompts"]

    assert prompts() == prompts(temperature=1.0)
    assert len({prompts(), prompts(system_prompt="the river"), prompts("<s>" + TEMPLATE)}) == 3
