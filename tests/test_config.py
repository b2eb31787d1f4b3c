"""Configs: strict where they enter, the same when they come back."""

from pathlib import Path

import pytest

from catalog.errors import UserError
from trainer.cli import read_config
from trainer.config import build, read_yaml, to_values, to_yaml, with_settings
from trainer.presets import PRESETS

SMALL = {"data": {"dataset": "somewhere"}, "out": "runs/x"}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_yaml(name: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(PRESETS[name]))
    assert read_config(str(path), []) == PRESETS[name] == build(to_values(PRESETS[name]))


def test_settings_have_the_type_of_their_field() -> None:
    config = build(
        with_settings(
            SMALL,
            [
                *("optimiser.lr=1e-4", "steps=7", "data.views=corner2, gripperPOV", "data.episodes=1:4"),
                *("alignment.norm=none", "alignment.positions=false", "alignment.grid=16x16"),
                *("data.cache=null", "optimiser.clip=2"),
            ],
        )
    )
    assert (config.optimiser.lr, config.steps, config.data.views) == (1e-4, 7, ("corner2", "gripperPOV"))
    assert config.data.episodes == "1:4"  # plain YAML reads 64
    assert (config.alignment.norm, config.alignment.positions, config.data.cache) == ("none", False, None)
    assert config.optimiser.clip == 2.0 and isinstance(config.optimiser.clip, float)
    assert config.alignment.grid == "16x16"


def test_numbers_of_yaml_files(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("data: {dataset: d, episodes: 12:30}\nout: 3\nseed: 4\noptimiser: {lr: 5e-5, weight_decay: 0}\n")
    config = build(read_yaml(path))
    assert (config.data.episodes, config.out, config.seed) == ("12:30", "3", 4)
    assert (config.optimiser.lr, config.optimiser.weight_decay) == (5e-5, 0.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["optimiser.learning_rate=1"], r"unknown key 'optimiser\.learning_rate'; known here: "),
        (["stepz=1"], "unknown key 'stepz'; known here: steps"),
        (["alignment.mod=none"], r"unknown key 'alignment\.mod'; known here: mode"),
        (["alignment.mode=chached"], "alignment.mode is 'chached'; expected one of: cached"),
        (["steps=many"], "steps is 'many'; expected int"),
        (["steps=1.5"], r"steps is 1\.5; expected int"),
        (["steps=true"], "steps is True; expected int"),
        (["alignment.positions=1"], "alignment.positions is 1; expected bool"),
        (["data=3"], "data is 3; expected keys below it: dataset"),
        (["steps.x=3"], "'steps' has no keys below it|steps is"),
        (["steps=0"], "steps is 0; expected at least 1"),
        (["seed=-1"], "seed is -1"),
        (["out="], "out is None; expected str"),
        (["data.dataset=''"], "data.dataset is not set"),
        (["alignment.mode=cached"], "data.cache is not set"),
        (["precision=bfloat16"], "needs a GPU"),
        (["device=gpu"], "device is 'gpu'; expected cpu, cuda"),
        (["model.image_size=50"], "do not divide"),
        (["optimiser.lr=0"], "above 0"),
        (["nothing"], "expected key=value"),
        (["data.views=[1, 2]"], "expected a list of names"),
    ],
)
def test_what_is_wrong_is_said(settings: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(with_settings(SMALL | {"steps": 5}, settings))


def test_wrong_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no preset 'debig'; give a YAML file, or one of: debug"):
        read_config("debig", [])
    with pytest.raises(UserError, match="No such file"):
        read_config(str(tmp_path / "no.yaml"), [])
    path = tmp_path / "c.yaml"
    path.write_text("a: [1\n")
    with pytest.raises(UserError, match="not YAML"):
        read_config(str(path), [])
    path.write_text("- 1\n")
    with pytest.raises(UserError, match="expected a mapping"):
        read_config(str(path), [])
