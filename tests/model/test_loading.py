"""A model that does not fit in memory: layers on disk give what layers in memory give."""

from __future__ import annotations

import numpy as np

from spikescore.model.engine import Engine
from spikescore.model.loading import Placement, load_model
from spikescore.model.sampling import Sampling
from spikescore.model.turns import Limits, Turn


class OneTurn:
    """A conversation of one turn."""

    def __init__(self, item_id: str, ids: list[int]) -> None:
        self.item_id, self.ids = item_id, ids

    def next_prompt(self, last: Turn | None) -> list[int] | None:
        return self.ids if last is None else None


def test_layers_on_disk_give_the_same_answers_and_states(tiny_model):
    turns = []
    for placement in (None, "cpu and disk"):
        device_map = None
        if placement:
            n_layers = turns[0]["n_layers"]
            device_map = dict.fromkeys(["model.embed_tokens", "model.norm", "lm_head"], "cpu")
            device_map["model.rotary_emb"] = "cpu"
            for layer in range(n_layers):
                device_map[f"model.layers.{layer}"] = "disk" if layer else "cpu"
        model = load_model(Placement(model_path=str(tiny_model), device_map=device_map))
        engine = Engine(
            model,
            stop_ids=[2],
            sampling=Sampling(0, 1, 0),
            limits=Limits(10, 200),
            batch_size=2,
        )
        conversations = [OneTurn("a", [5, 6, 7]), OneTurn("b", [8, 9, 10, 11])]
        finished = {f.conversation.item_id: f.turns[0] for f in engine.run(conversations)}
        turns.append({"n_layers": model.config.num_hidden_layers, **finished})
        if placement:
            assert "disk" in model.hf_device_map.values()
    for name in ("a", "b"):
        one, two = (found[name] for found in turns)
        assert one.answer_ids == two.answer_ids
        assert all(np.array_equal(one.states[key], two.states[key]) for key in one.states)
