"""The command: presets, one result on stdout, one line on stderr for a mistake, quick to say how it is used."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import REPOSITORY
from trainer.cli import main
from trainer.config import build
from trainer.presets import PRESETS


def test_presets_are_listed_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["presets"]) == 0
    assert capsys.readouterr().out.split() == list(PRESETS)
    assert main(["presets", "demo"]) == 0
    assert build(yaml.safe_load(capsys.readouterr().out)) == PRESETS["demo"]
    assert main(["presets", "debug", "--json"]) == 0
    assert build(json.loads(capsys.readouterr().out)) == PRESETS["debug"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "demi"], "trainer: no preset 'demi'; give a YAML file, or one of: demo, debug\n"),
        (["run", "debug", "--set", "stepz=3"], "trainer: unknown key 'stepz'; known here: steps"),
        (["run", "debug", "--set", "data.dataset=/nowhere"], "trainer: /nowhere: nothing; expected the folder"),
        (["run", "debug", "--set", "data.views=top"], "no camera named 'top'; expected one of: "),
        (["presets", "demi"], "trainer: no preset 'demi'"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    assert main(arguments) == 1
    out, err = capsys.readouterr()
    assert out == "" and message in err and err.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["run"], ["run", "debug", "--sett", "x=1"], ["train", "debug"]])
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2


def test_help_is_quick_and_light() -> None:
    heavy = "{'torch', 'ray', 'transformers', 'yaml', 'numpy'} & set(sys.modules)"
    code = f"import sys, trainer.cli\ntry: trainer.cli.main(['run', '--help'])\nfinally: assert not {heavy}, {heavy}"
    before = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert "--resume" in done.stdout
    assert time.perf_counter() - before < 2


def test_a_run_from_a_yaml_file(tmp_path: Path, metaworld: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["presets", "debug"])
    (tmp_path / "mine.yaml").write_text(capsys.readouterr().out)
    settings = [f"out={tmp_path / 'run'}", f"data.dataset={metaworld}", "steps=2"]
    arguments = [word for setting in settings for word in ("--set", setting)]
    assert main(["run", str(tmp_path / "mine.yaml"), *arguments]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"{tmp_path / 'run'}: 2 steps, loss ") and out.count("\n") == 1
    assert "step/s" in err  # the progress bar
    assert main(["run", str(tmp_path / "mine.yaml"), *arguments, "--resume", "--json"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert result["step"] == 2 and result["action_loss"] == result["loss"]
