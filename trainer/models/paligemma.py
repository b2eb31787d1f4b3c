"""PaliGemma (transformers 5.23) as a policy that predicts a chunk of actions in one pass, as OpenVLA-OFT does.

Sequence: image tokens of all views, the instruction, one token of proprioception, chunk * action_size slots whose
embeddings are zero, padding on the right. Nothing is causal: every token sees every token but padding and the image
tokens of absent views. The action of a slot is read at the position before it, after the final norm.

What the code depends on in transformers, held by a test:
- PaliGemma's own forward makes a mask that is causal where a batch has padding and bidirectional where it has none
  (`use_bidirectional_attention` only reaches attention that gets no mask). A 4D mask is taken as it is, so that is
  what the language model is given, and it is called directly.
- Text embeddings are multiplied by sqrt(width) when they are looked up; image features are used as they are.
Positions count from 1, as PaliGemma's own do.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GemmaConfig, PaliGemmaConfig, PaliGemmaForConditionalGeneration, SiglipVisionConfig
from transformers.models.paligemma.modeling_paligemma import PaliGemmaModel

from catalog.errors import UserError
from trainer.batch import Batch
from trainer.config import ModelConfig
from trainer.geometry import Affine
from trainer.models.head import ActionHead, ProprioProjector
from trainer.tokenise import BEGIN, END, IMAGE, PADDING, VOCABULARY, ByteTokeniser, FolderTokeniser, Tokeniser


class PaliGemmaPolicy(nn.Module):
    """What the trainer asks of a policy, whatever its family:

    image_size: (height, width) in pixels, to which `trainer.samples` stretches the whole source image;
    source_to_student: that framing, as an affine;
    tokeniser: instruction -> ids;
    grid: (rows, columns) of a view's image tokens, and `image_tokens`: where they are in a hidden state;
    width: D of its hidden states; layers and final_norm: the stack that `trainer.hook` reads;
    forward(batch): normalised actions; action_loss(actions, batch): a loss for each sample.
    """

    def __init__(
        self,
        vlm: PaliGemmaModel,
        tokeniser: Tokeniser,
        chunk: int,
        state_size: int,
        action_size: int,
    ):
        super().__init__()
        self.vlm = vlm
        self.tokeniser = tokeniser
        self.chunk, self.action_size = chunk, action_size
        vision: Any = vlm.config.vision_config
        self.width: int = vlm.config.get_text_config().hidden_size
        side: int = vision.image_size
        rows = side // vision.patch_size
        self.image_size = (side, side)
        self.grid = (rows, rows)
        self.proprio_projector = ProprioProjector(state_size, self.width)
        self.action_head = ActionHead(self.width, action_size)

    @property
    def layers(self) -> nn.ModuleList:
        return self.vlm.language_model.layers

    @property
    def final_norm(self) -> nn.Module:
        return self.vlm.language_model.norm

    def source_to_student(self, source: tuple[int, int]) -> Affine:
        """Source (height, width) -> the affine to the student's pixels."""
        return (self.image_size[1] / source[1], 0.0, 0.0), (0.0, self.image_size[0] / source[0], 0.0)

    def image_tokens(self, hidden: Tensor, views: int) -> Tensor:
        """The views' tokens in a hidden state: [B, sequence, D] -> [B, V, rows * columns, D]."""
        tokens = self.grid[0] * self.grid[1]
        return hidden[:, : views * tokens].unflatten(1, (views, tokens))

    def embed(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """The sequence's embeddings [B, L, D], which tokens are seen [B, L], and the positions [B, slots] that the
        actions are read at."""
        B, V = batch.images.shape[:2]
        pixels = batch.images.flatten(0, 1).float() / 127.5 - 1
        images = self.vlm.get_image_features(pixels).pooler_output.unflatten(0, (B, V))
        seen_images = batch.views.unsqueeze(2).expand(B, V, images.shape[2]).flatten(1)
        images = images.flatten(1, 2)
        text = self.vlm.get_input_embeddings()(batch.text)
        proprio = self.proprio_projector(batch.state).unsqueeze(1)
        slots = text.new_zeros(B, self.chunk * self.action_size, self.width)
        tail = torch.ones(B, 1 + slots.shape[1], dtype=torch.bool, device=text.device)
        embeddings = torch.cat([images.to(text.dtype), text, proprio.to(text.dtype), slots], dim=1)
        seen = torch.cat([seen_images, batch.text_mask, tail], dim=1)
        # The text was padded, with proprioception and slots behind it: move the padding to the end of the sequence.
        padding = torch.cat([torch.zeros_like(seen_images), ~batch.text_mask, ~tail], dim=1)
        order = torch.argsort(padding.to(torch.uint8), dim=1, stable=True)
        embeddings = embeddings.gather(1, order.unsqueeze(-1).expand_as(embeddings))
        before_slots = images.shape[1] + batch.text_mask.sum(1, keepdim=True)  # the token of proprioception
        reads = before_slots + torch.arange(slots.shape[1], device=text.device)
        return embeddings, seen.gather(1, order), reads

    def forward(self, batch: Batch) -> Tensor:
        """Normalised actions [B, chunk, A]."""
        embeddings, seen, reads = self.embed(batch)
        # Added to the attention scores: [B, 1, 1, L], the same for every head and every token that looks.
        mask = torch.zeros(seen.shape, dtype=embeddings.dtype, device=seen.device)
        mask = mask.masked_fill(~seen, torch.finfo(embeddings.dtype).min)[:, None, None, :]
        positions = torch.arange(1, seen.shape[1] + 1, device=seen.device).unsqueeze(0)
        hidden = self.vlm.language_model(
            inputs_embeds=embeddings, attention_mask=mask, position_ids=positions, use_cache=False
        ).last_hidden_state
        slots = hidden.gather(1, reads.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))
        return self.action_head(slots)

    def action_loss(self, actions: Tensor, batch: Batch) -> Tensor:
        """Mean absolute error of each sample [B], over its actions inside the episode, in float32."""
        error = (actions.float() - batch.actions).abs().mean(-1) * batch.action_mask
        return error.sum(1) / batch.action_mask.sum(1)


def build(config: ModelConfig, state_size: int, action_size: int) -> PaliGemmaPolicy:
    """The policy: pretrained weights of `config.path`, or random ones of the config's sizes."""
    tokeniser: Tokeniser = ByteTokeniser()
    if config.path is None:
        vlm = PaliGemmaModel(tiny(config))
    else:
        if not (Path(config.path) / "config.json").is_file():
            raise UserError(f"model.path {config.path}: no config.json there; give a folder of PaliGemma weights")
        vlm = PaliGemmaForConditionalGeneration.from_pretrained(
            config.path, local_files_only=True, dtype=torch.float32
        ).model
        tokeniser = tokeniser_of(config.path, vlm.config.get_text_config().vocab_size)
    if config.gradient_checkpointing:
        vlm.activation_checkpointing_enable({"use_reentrant": False})
    return PaliGemmaPolicy(vlm, tokeniser, config.chunk, state_size, action_size)


def tokeniser_of(path: str, vocabulary: int) -> Tokeniser:
    """The tokeniser beside pretrained weights; the byte-level one if there is none and it fits the embeddings."""
    if (Path(path) / "tokenizer.json").is_file():
        return FolderTokeniser(path)
    if vocabulary != VOCABULARY:
        raise UserError(f"model.path {path}: no tokenizer.json there; copy it beside the weights")
    return ByteTokeniser()


def tiny(config: ModelConfig) -> PaliGemmaConfig:
    """A PaliGemma of the config's sizes with the byte-level vocabulary."""
    vision = SiglipVisionConfig(
        hidden_size=config.vision_width,
        intermediate_size=4 * config.vision_width,
        num_hidden_layers=config.vision_layers,
        num_attention_heads=config.heads,
        image_size=config.image_size,
        patch_size=config.patch_size,
        vision_use_head=False,  # the pooling head would get no gradient
    )
    text = GemmaConfig(
        vocab_size=VOCABULARY,
        hidden_size=config.width,
        intermediate_size=4 * config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=1,
        head_dim=config.width // config.heads,
        pad_token_id=PADDING,
        eos_token_id=END,
        bos_token_id=BEGIN,
    )
    return PaliGemmaConfig(
        vision_config=vision.to_dict(), text_config=text.to_dict(), image_token_index=IMAGE, projection_dim=config.width
    )
