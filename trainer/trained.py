"""Read a trained policy back from the folder of its run: config, bounds, the last whole checkpoint."""

import json
from pathlib import Path

from safetensors.torch import load_file

from catalog.errors import UserError
from trainer import checkpoint
from trainer.config import RunConfig, build, read_yaml
from trainer.models import paligemma
from trainer.normalise import Bounds
from trainer.run import CONFIG, STATISTICS


def read_run(run: Path) -> tuple[RunConfig, Bounds, Bounds]:
    """The config of a run and its bounds of states and of actions. UserError if `run` is not the folder of one."""
    if not (run / CONFIG).is_file():
        raise UserError(f"{run}: no {CONFIG} there; expected the folder of a run (its `out`)")
    config = build(read_yaml(run / CONFIG))
    try:
        values = json.loads((run / STATISTICS).read_text())
        state, action = (Bounds.from_json(values[name]) for name in ("state", "action"))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{run}/{STATISTICS}: not readable ({error}); a policy is useless without it; copy the run again"
        ) from None
    return config, state, action


def read_policy(run: Path, config: RunConfig, state: Bounds, action: Bounds) -> tuple[paligemma.PaliGemmaPolicy, Path]:
    """The policy at the run's last whole checkpoint, in evaluation mode, and where that is. UserError if none is."""
    path = checkpoint.latest(run)
    if path is None:
        raise UserError(f"{run}: no whole checkpoint; train it with `trainer run ... --resume`")
    policy = paligemma.build(config.model, len(state.q01), len(action.q01))
    policy.load_state_dict(load_file(path / "model.safetensors"))
    return policy.eval(), path
