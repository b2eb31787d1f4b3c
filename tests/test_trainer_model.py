"""The policy: who sees whom, where the gradient goes, and that a sample is alone in its batch."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast

from catalog.errors import UserError
from trainer.align import SpatialForcing
from trainer.batch import Batch, pad_right
from trainer.config import ModelConfig
from trainer.hook import HiddenState
from trainer.models.head import ActionHead, ProprioProjector
from trainer.models.paligemma import PaliGemmaPolicy, build, tokeniser_of
from trainer.tokenise import BEGIN, PADDING, VOCABULARY, ByteTokeniser

GOLDEN = Path(__file__).parent / "data" / "golden"
SIZES = ModelConfig(image_size=32, patch_size=8, vision_width=16, vision_layers=2, width=32, layers=4, heads=2, chunk=3)
STATE, ACTION, VIEWS, TOKENS = 5, 2, 2, 16
TEXTS = ["push", "open the drawer slowly", "reach"]


@pytest.fixture(scope="module")
def policy() -> PaliGemmaPolicy:
    torch.manual_seed(0)
    return build(SIZES, STATE, ACTION).train()


def make_batch(texts: list[str] = TEXTS, padding: int = 0) -> Batch:
    """Random images, states and actions; `padding` more columns of padding behind the text."""
    generator = torch.Generator().manual_seed(1)
    count = len(texts)
    ids, mask = pad_right([ByteTokeniser()(text) for text in texts], PADDING)
    return Batch(
        episodes=torch.arange(count),
        frames=torch.arange(count),
        images=torch.randint(0, 256, (count, VIEWS, 3, 32, 32), dtype=torch.uint8, generator=generator),
        views=torch.ones(count, VIEWS, dtype=torch.bool),
        text=torch.nn.functional.pad(ids, (0, padding), value=PADDING),
        text_mask=torch.nn.functional.pad(mask, (0, padding), value=False),
        state=torch.rand(count, STATE, generator=generator),
        actions=torch.rand(count, SIZES.chunk, ACTION, generator=generator) * 2 - 1,
        action_mask=torch.ones(count, SIZES.chunk, dtype=torch.bool),
    )


def rows(batch: Batch, which: slice) -> Batch:
    return batch._map(lambda tensor: tensor[which])


def hidden_states(policy: PaliGemmaPolicy, batch: Batch, k: int) -> torch.Tensor:
    capture = HiddenState(policy.layers, policy.final_norm, k)
    with capture:
        policy(batch)
    capture.detach()
    return capture.value


def test_every_token_sees_every_token_but_padding(policy: PaliGemmaPolicy) -> None:
    batch = make_batch()
    before = hidden_states(policy, batch, 1)
    # Proprioception comes after images and text: a causal model's image tokens would not notice it.
    later = hidden_states(policy, replace(batch, state=batch.state + 1), 1)
    changed = (later - before).abs().amax(-1) > 1e-7
    lengths = VIEWS * TOKENS + batch.text_mask.sum(1) + 1 + SIZES.chunk * ACTION
    for sample, length in enumerate(lengths.tolist()):
        assert changed[sample, :length].all()
    assert lengths[0] < before.shape[1]


def test_padding_changes_nothing(policy: PaliGemmaPolicy) -> None:
    batch = make_batch()
    actions = policy(batch)
    # Other ids in the place of padding, and more of it: to the bit where the shape stays, else to rounding.
    noise = torch.where(batch.text_mask, batch.text, 77)
    assert torch.equal(policy(replace(batch, text=noise)), actions)
    torch.testing.assert_close(policy(make_batch(padding=9)), actions, atol=1e-5, rtol=0)


def test_a_sample_alone_is_the_sample_in_a_padded_batch(policy: PaliGemmaPolicy) -> None:
    torch.manual_seed(0)
    batch = make_batch()
    forcing = SpatialForcing(policy.width, 8)
    targets = torch.randn(3, VIEWS, TOKENS, 8)
    mask = torch.tensor([[True, True], [True, False], [False, True]])

    def losses(some: Batch, targets: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        capture = HiddenState(policy.layers, policy.final_norm, 2)
        with capture:
            actions = policy(some)
        capture.detach()
        tokens = policy.image_tokens(capture.value, VIEWS)
        return torch.stack([policy.action_loss(actions, some), forcing(tokens, targets, mask).per_sample])

    together = losses(batch, targets, mask)
    for sample in range(3):
        here = slice(sample, sample + 1)
        alone = losses(rows(batch, here), targets[here], mask[here])
        torch.testing.assert_close(alone[:, 0], together[:, sample], atol=1e-5, rtol=0)


def test_absent_views_are_not_seen(policy: PaliGemmaPolicy) -> None:
    batch = make_batch()
    absent = replace(batch, views=torch.tensor([[True, False]] * 3))
    other = absent.images.clone()
    other[:, 1] = 255 - other[:, 1]
    assert torch.equal(policy(absent), policy(replace(absent, images=other)))
    assert not torch.equal(policy(absent), policy(batch))


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_alignment_gradient_reaches_the_layers_before_the_hook_and_no_other(k: int, checkpointing: bool) -> None:
    torch.manual_seed(0)
    policy = build(replace(SIZES, gradient_checkpointing=checkpointing), STATE, ACTION).train()
    forcing = SpatialForcing(policy.width, 8)
    tokens = policy.image_tokens(hidden_states(policy, make_batch(), k), VIEWS)
    forcing(tokens, torch.randn(3, VIEWS, TOKENS, 8)).total.backward()
    for name, parameter in [*policy.named_parameters(), *forcing.named_parameters()]:
        stem, _, rest = name.partition("language_model.layers.")
        after = name.startswith("action_head.") or (bool(rest) and int(rest.split(".")[0]) >= k)
        after = after or (stem.endswith("language_model.norm.weight") and k < SIZES.layers)
        reached = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        # The bias of a vision tower's keys shifts every score alike: softmax takes it away.
        if not name.endswith("self_attn.k_proj.bias"):
            assert reached != after, name
    assert policy.vlm.language_model.layers[0].self_attn.q_proj.weight.grad is not None


def test_gradient_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        policy = build(replace(SIZES, gradient_checkpointing=checkpointing), STATE, ACTION).train()
        tokens = policy.image_tokens(hidden_states(policy, make_batch(), 2), VIEWS)
        SpatialForcing(policy.width, 8)(tokens, torch.ones(3, VIEWS, TOKENS, 8)).total.backward()
        gradients.append([p.grad for p in policy.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_sequence_is_what_transformers_computes_without_a_causal_mask(policy: PaliGemmaPolicy) -> None:
    """One sample, so no padding: PaliGemma's own forward over the same embeddings, all of it a bidirectional prefix.
    Holds the mask, the positions, and that image features are used as they are and text times sqrt(width)."""
    batch = make_batch(TEXTS[1:2])
    embeddings, seen, reads = policy.embed(batch)
    assert seen.all()
    pixels = batch.images[0].float() / 127.5 - 1
    images = policy.vlm.get_image_features(pixels).pooler_output.flatten(0, 1)
    torch.testing.assert_close(embeddings[0, : VIEWS * TOKENS], images)
    words = policy.vlm.language_model.embed_tokens.weight[batch.text[0]] * policy.width**0.5
    torch.testing.assert_close(embeddings[0, VIEWS * TOKENS : VIEWS * TOKENS + len(words)], words)
    torch.testing.assert_close(embeddings[0, reads[0, 0]], policy.proprio_projector(batch.state)[0])
    assert embeddings[0, reads[0, 0] + 1 :].abs().sum() == 0
    assert embeddings.shape[1] == reads[0, -1] + 2

    prefix = torch.zeros(embeddings.shape[:2], dtype=torch.long)
    own = policy.vlm(inputs_embeds=embeddings, token_type_ids=prefix, use_cache=False).last_hidden_state
    torch.testing.assert_close(hidden_states(policy, batch, SIZES.layers), own, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(policy(batch), policy.action_head(own[:, reads[0]]), atol=1e-5, rtol=1e-5)


def test_head_and_proprioception_are_those_of_the_published_openvla_step() -> None:
    weights = load_file(GOLDEN / "public_openvla_step_weights.safetensors")
    batch = load_file(GOLDEN / "public_openvla_step_batch.safetensors")
    sizes = json.loads((GOLDEN / "public_openvla_step.json").read_text())

    def part(prefix: str) -> dict[str, torch.Tensor]:
        return {k.removeprefix(prefix): v.float() for k, v in weights.items() if k.startswith(prefix)}

    head = ActionHead(32, 7)
    head.load_state_dict(part("action_head."))
    # The slots stand behind the first token, 513 inserted ones and the prompt; each is read one position before.
    firsts = 513 + (batch["labels"] != -100).int().argmax(1) - 1
    slots = [hidden[first : first + 56] for hidden, first in zip(batch["last_hidden"], firsts.tolist(), strict=True)]
    actions = head(torch.stack(slots))
    torch.testing.assert_close(actions, batch["predicted_actions"], atol=1e-5, rtol=0)
    assert (actions - batch["actions"]).abs().mean().item() == pytest.approx(sizes["l1_loss"], abs=1e-5)

    proprio = ProprioProjector(8, 32)
    proprio.load_state_dict(part("proprio_projector."))
    torch.testing.assert_close(proprio(batch["proprio"]), batch["projected_patches"][:, -1], atol=1e-5, rtol=0)


def test_action_loss_counts_the_actions_inside_the_episode(policy: PaliGemmaPolicy) -> None:
    batch = make_batch()
    predicted = torch.zeros_like(batch.actions)
    mask = torch.tensor([[True, True, True], [True, False, False], [True, True, False]])
    loss = policy.action_loss(predicted, replace(batch, action_mask=mask))
    expected = [batch.actions[0].abs().mean(), batch.actions[1, 0].abs().mean(), batch.actions[2, :2].abs().mean()]
    torch.testing.assert_close(loss, torch.stack(expected))


def test_bfloat16_autocast_is_the_same_to_its_precision(policy: PaliGemmaPolicy) -> None:
    batch = make_batch()
    exact = policy.action_loss(policy(batch), batch)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = policy.action_loss(policy(batch), batch)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, atol=0.02, rtol=0)


def test_tokenisers(tmp_path: Path) -> None:
    ids = ByteTokeniser()("Öl")
    assert ids[0] == BEGIN and bytes(i - 4 for i in ids[1:]).decode() == "Öl\n" and max(ids) < VOCABULARY

    words = {"<pad>": 0, "<bos>": 1, "push": 2, "door\n": 3, "<unk>": 4}
    made = Tokenizer(WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = Split(" ", "removed")
    PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<bos>", pad_token="<pad>").save_pretrained(tmp_path)
    assert tokeniser_of(str(tmp_path), 5)("push door") == [1, 2, 3]
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        tokeniser_of(str(tmp_path), 257_216)


def test_pretrained_weights_from_a_folder(policy: PaliGemmaPolicy, tmp_path: Path) -> None:
    from transformers import PaliGemmaForConditionalGeneration

    whole = PaliGemmaForConditionalGeneration(policy.vlm.config)
    whole.model.load_state_dict(policy.vlm.state_dict())
    whole.save_pretrained(tmp_path)
    loaded = build(replace(SIZES, path=str(tmp_path)), STATE, ACTION)
    assert (loaded.grid, loaded.width, len(loaded.layers)) == ((4, 4), 32, 4)
    for name, tensor in policy.vlm.state_dict().items():
        assert torch.equal(loaded.vlm.state_dict()[name], tensor), name
    assert isinstance(loaded.tokeniser, ByteTokeniser)
    with pytest.raises(UserError, match=r"no config\.json"):
        build(replace(SIZES, path=str(tmp_path / "nowhere")), STATE, ACTION)
