"""The hook sees what transformers calls hidden_states[k], once a forward, and leaves no trace."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from transformers import GemmaConfig
from transformers.models.gemma.modeling_gemma import GemmaModel

from catalog.errors import UserError
from trainer.hook import HiddenState

LAYERS = 3


@pytest.fixture
def model() -> GemmaModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "head_dim": 8}
    return GemmaModel(GemmaConfig(vocab_size=30, num_hidden_layers=LAYERS, num_key_value_heads=1, **sizes)).train()


IDS = torch.arange(10).reshape(2, 5)


@pytest.mark.parametrize("k", range(LAYERS + 1))
def test_it_is_the_hidden_state_of_transformers(model: GemmaModel, k: int) -> None:
    capture = HiddenState(model.layers, model.norm, k)
    with capture:
        hidden = model(IDS, output_hidden_states=True, use_cache=False).hidden_states
    assert len(hidden) == LAYERS + 1
    assert torch.equal(capture.value, hidden[k])


def test_a_layer_that_does_not_exist_is_refused_with_their_number(model: GemmaModel) -> None:
    for k in (-1, LAYERS + 1):
        with pytest.raises(UserError, match=f"layer {k} does not exist: the model has 3 layers"):
            HiddenState(model.layers, model.norm, k)


def test_the_first_call_of_each_forward_is_kept(model: GemmaModel) -> None:
    capture = HiddenState(model.layers, model.norm, 1)
    with capture:
        first = model(IDS, output_hidden_states=True, use_cache=False).hidden_states[1]
        model(IDS + 1, use_cache=False)
    assert torch.equal(capture.value, first)
    model(IDS + 2, use_cache=False)  # outside of the block nothing is kept
    with pytest.raises(RuntimeError, match="not seen in the last forward"):
        _ = capture.value
    with capture:
        second = model(IDS + 3, output_hidden_states=True, use_cache=False).hidden_states[1]
    assert torch.equal(capture.value, second)


def test_recomputing_in_the_backward_pass_does_not_replace_it(model: GemmaModel) -> None:
    capture = HiddenState(model.layers, model.norm, 1)
    embeddings = model.embed_tokens(IDS)
    with capture:
        hidden = checkpoint(lambda x: model(inputs_embeds=x, use_cache=False)[0], embeddings, use_reentrant=False)
    value = capture.value
    with capture:
        pass
    (hidden.sum() + value.sum()).backward()  # runs the layers again
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        _ = capture.value


def test_reentrant_checkpointing_is_refused_because_it_would_train_nothing(model: GemmaModel) -> None:
    capture = HiddenState(model.layers, model.norm, 1)
    embeddings = model.embed_tokens(IDS)
    with capture:
        checkpoint(lambda x: model(inputs_embeds=x, use_cache=False)[0], embeddings, use_reentrant=True)
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        _ = capture.value


@pytest.mark.parametrize("k", [1, LAYERS])
def test_detach_leaves_no_trace(model: GemmaModel, k: int) -> None:
    def hooks() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())

    before = hooks()
    capture = HiddenState(model.layers, model.norm, k)
    assert hooks() == before + 1
    capture.detach()
    assert hooks() == before
    with capture:
        model(IDS, use_cache=False)
    with pytest.raises(RuntimeError):
        _ = capture.value
