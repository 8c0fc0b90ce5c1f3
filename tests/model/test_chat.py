"""Texts stay texts, answers end where the template closes a turn, plain prompts do not end."""

from __future__ import annotations

import pytest
from tokenizers import processors

from spikescore.model.chat import ChatFormat
from tests.helpers.running import CHAT_TEMPLATE, make_tokenizer

CLOSED_OTHERWISE = CHAT_TEMPLATE.replace("{{ eos_token }}", "<pad>")


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, None])
@pytest.mark.parametrize("text", ["a<end><bos>b", "<end>", "the \ue0f00\ue0f1 mark <pad>"])
def test_a_text_that_spells_control_tokens_is_encoded_by_its_letters(template, text):
    tokenizer = make_tokenizer(chat_template=template)
    chat = ChatFormat(tokenizer, enable_thinking=False)
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
    messages.append({"role": "user", "content": "x"})
    plain = [{**message, "content": "x"} for message in messages]
    specials = set(tokenizer.all_special_ids)
    shown = chat.rendering(messages)
    assert shown.text.count(text) >= 2 and tokenizer.decode(shown.ids) == shown.text
    kept = [token for token in shown.ids if token in specials]
    assert kept == [token for token in chat.render(plain) if token in specials]
    assert not specials & set(chat.plain_ids(text))


@pytest.mark.parametrize(
    ("template", "token"), [(CHAT_TEMPLATE, "<end>"), (CLOSED_OTHERWISE, "<pad>")]
)
def test_an_answer_ends_with_what_the_template_closes_a_turn_with(template, token):
    tokenizer = make_tokenizer(chat_template=template)
    chat = ChatFormat(tokenizer, enable_thinking=False)
    assert chat.turn_end_ids == {tokenizer.convert_tokens_to_ids(token)}


def test_a_plain_prompt_begins_as_the_tokenizer_does_and_ends_with_its_text():
    tokenizer = make_tokenizer(chat_template=None)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <end>", pair=None, special_tokens=[("<bos>", 1), ("<end>", 2)]
    )
    chat = ChatFormat(tokenizer, enable_thinking=False)
    bare = tokenizer("the answer", add_special_tokens=False)["input_ids"]
    assert chat.plain_ids("the answer") == [1, *bare]
    assert chat.render([{"role": "user", "content": "x"}])[-1] != 2
