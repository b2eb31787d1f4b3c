"""Reads one hidden state of a layer stack while the model runs, without asking it for all of them.

`hidden_states[k]` of transformers is what goes into layer k, and for k = number of layers what the final norm gives.
Policies that call a layer's parts themselves never fire a hook on the layer, but every one of them calls the layer's
`input_layernorm`, so layer k is hooked there. Gradient checkpointing calls it again in the backward pass: only the
first call inside the `with` block of a forward is kept.
"""

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from catalog.errors import UserError


class HiddenState:
    """Captures `hidden_states[k]` of every forward that runs in its `with` block; `detach()` leaves no trace.

        capture = HiddenState(model.layers, model.norm, k=12)
        with capture:
            model(...)
        hidden = capture.value     # [B, sequence, D], part of the graph

    Raises UserError if the stack has no such layer.
    """

    def __init__(self, layers: Sequence[nn.Module] | nn.ModuleList, final_norm: nn.Module, k: int):
        if not 0 <= k <= len(layers):
            raise UserError(
                f"layer {k} does not exist: the model has {len(layers)} layers; give 0 (the embeddings) to "
                f"{len(layers)} (after the final norm)"
            )
        self.k = k
        self._open = False
        self._wants_gradient = False
        self._value: Tensor | None = None
        if k == len(layers):
            self._handle = final_norm.register_forward_hook(self._after_norm)
        else:
            norm = layers[k].get_submodule("input_layernorm")
            self._handle = norm.register_forward_pre_hook(self._before_layer, with_kwargs=True)

    def __enter__(self) -> "HiddenState":
        self._open, self._value, self._wants_gradient = True, None, torch.is_grad_enabled()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._open = False

    @property
    def value(self) -> Tensor:
        """The hidden state of the last forward, [B, sequence, D]. Handed out once, so that no graph is kept alive."""
        if self._value is None:
            raise RuntimeError(
                f"hidden state {self.k} was not seen in the last forward; run the model inside `with`, and if it "
                "checkpoints its gradients, with use_reentrant=False"
            )
        value, self._value = self._value, None
        return value

    def detach(self) -> None:
        """Remove the hook."""
        self._handle.remove()

    def _keep(self, tensor: Tensor) -> None:
        # Reentrant checkpointing runs the layers without gradients first: such a tensor would train nothing.
        if self._open and self._value is None and (torch.is_grad_enabled() or not self._wants_gradient):
            self._value = tensor

    def _before_layer(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._keep(args[0] if args else next(iter(kwargs.values())))

    def _after_norm(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        self._keep(output)
