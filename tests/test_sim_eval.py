"""The closed loop: the experts succeed in it, a trained policy runs in it, and what does not fit is refused."""

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("metaworld", reason="needs the extra sim")

from catalog.command import run
from catalog.datasets import open_dataset
from catalog.errors import UserError
from trainer.cli import main as trainer_main
from trainer.sim import cli
from trainer.sim.episode import steps
from trainer.sim.evaluate import Trial, Who, attempt, evaluate, make, wilson
from trainer.sim.learned import LearnedPolicy
from trainer.sim.policy import Expert, Sight, look
from trainer.sim.tasks import INSTRUCTIONS, task_names, wording
from trainer.sim.world import DEMONSTRATIONS, EVALUATION, SCENES, World, initial_states


def trainer(*arguments: object) -> int:
    parser = argparse.ArgumentParser(prog="trainer")
    cli.add_commands(parser.add_subparsers(required=True))
    return run(parser, [str(argument) for argument in arguments])


@pytest.fixture(autouse=True)
def forget_policies() -> Iterator[None]:
    """Policies are kept by the folder of their run; tests change what lies there."""
    yield
    make.cache_clear()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, metaworld: Path) -> Path:
    out = tmp_path_factory.mktemp("eval") / "run"
    settings = [f"out={out}", f"data.dataset={metaworld}", "data.views=gripperPOV,corner2", "steps=2"]
    assert trainer_main(["run", "debug", *(word for each in settings for word in ("--set", each))]) == 0
    return out


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_experts_succeed_in_the_loop() -> None:
    result = evaluate(Who("expert"), ("drawer-open", "push", "pick-place"), 8)
    assert result["success_rate"] >= 0.95
    assert result["episodes"] == 24 and set(result["tasks"]) == {"drawer-open", "push", "pick-place"}
    assert 40 < result["tasks"]["push"]["steps"] < 100


@pytest.mark.slow
def test_all_experts_succeed_in_95_percent_of_episodes() -> None:
    assert evaluate(Who("expert"), task_names("all"), 4, workers=2)["success_rate"] >= 0.95


def test_the_result_does_not_depend_on_the_number_of_workers(capsys: pytest.CaptureFixture[str]) -> None:
    results = []
    for workers in (1, 2):
        assert trainer("eval", "expert", "--tasks", "reach", "--episodes", 3, "--workers", workers, "--json") == 0
        results.append(json.loads(capsys.readouterr().out))
    assert results[0] == results[1] and results[0]["success_rate"] == 1
    assert results[0]["initial_states"] == [EVALUATION, EVALUATION + 3]


def test_wilson_against_published_values() -> None:
    """Newcombe 1998, table I (method 3)."""
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)
    assert wilson(7, 7)[1] == 1


def test_the_loop_reproduces_the_examples_states_and_actions(metaworld: Path) -> None:
    """Initial state 2 of demonstrations is episode 18 there, to the last bit: the same loop, the same numbers."""
    columns = open_dataset(metaworld).columns(18)
    world = World("push")
    done = list(steps(world, Expert(), DEMONSTRATIONS + 2, "", after=4))
    assert np.array_equal(np.stack([step.state for step in done]), columns.state)
    assert np.array_equal(np.stack([step.action for step in done]), columns.action)


def test_initial_states_are_split() -> None:
    """Whatever a policy is measured on, no demonstration and no scene starts from; the same number gives the same."""
    world = World("reach")
    seen = {}
    for number in (*range(DEMONSTRATIONS, 60), *range(EVALUATION, EVALUATION + 60), *range(SCENES, SCENES + 60)):
        world.reset(number)
        seen[number] = world._env._last_rand_vec.tobytes()
    assert len(set(seen.values())) == len(seen) == 180
    initial_states.cache_clear()
    world.reset(EVALUATION + 59)
    assert world._env._last_rand_vec.tobytes() == seen[EVALUATION + 59]


class Scripted:
    """A policy that predicts chunks of a known kind."""

    cameras: tuple[str, ...] = ()
    size = (32, 32)

    def __init__(self, chunk: int):
        self.chunk, self.asked = chunk, 0

    def act(self, sight: Sight) -> NDArray[np.float32]:
        self.asked += 1
        actions = np.zeros((self.chunk, 4), np.float32)
        actions[:, 0] = np.arange(self.chunk)  # 1 and more are clipped
        return actions


@pytest.mark.parametrize(("executed", "asked"), [(None, 50), (3, 167), (10, 50)])
def test_so_many_actions_of_a_chunk_are_carried_out(executed: int | None, asked: int) -> None:
    policy, world = Scripted(10), World("push")
    done = list(steps(world, policy, EVALUATION, "", steps_per_chunk=executed))  # type: ignore[arg-type]
    assert len(done) == 500 and policy.asked == asked and not world.succeeded
    assert [step.action[0] for step in done[:4]] == [0, 1, 1, 1 if executed != 3 else 0]


def test_a_trained_policy_sees_what_it_saw_in_training(trained: Path, metaworld: Path) -> None:
    """On the first frame of a demonstration: the same action as from the dataset's own frame, but for h264."""
    policy, world = LearnedPolicy(trained), World("push")
    assert policy.cameras == ("gripperPOV", "corner2") and policy.size == (128, 128) and policy.chunk == 4
    world.reset(DEMONSTRATIONS)
    sight = look(world, policy, policy.instruction("push", 0))
    assert sight.instruction == "push the puck to the goal"
    dataset = open_dataset(metaworld)
    for image, camera in zip(sight.images, ("gripperPOV", "corner2"), strict=True):
        stored = dataset.frames(16, [0], f"observation.images.{camera}")[0]
        assert np.abs(image.astype(int) - stored).mean() < 7
    assert np.array_equal(sight.state, dataset.columns(16).state[0])  # type: ignore[index]
    actions = policy.act(sight)
    assert actions.shape == (4, 4) and np.isfinite(actions).all()
    assert (actions >= policy.action_bounds.q01 - 1e-6).all() and (actions <= policy.action_bounds.q99 + 1e-6).all()


def test_eval_of_a_run_with_a_video(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.sim.episode.STEPS", 40)  # it will not succeed
    arguments = ["--tasks", "push", "--episodes", 1, "--steps-per-chunk", 4, "--video", tmp_path / "videos", "--json"]
    assert trainer("eval", trained, *arguments) == 0
    captured = capsys.readouterr()
    result: dict[str, Any] = json.loads(captured.out)
    assert result["tasks"]["push"]["episodes"] == 1 and result["steps_per_chunk"] == 4
    assert result["checkpoint"].endswith("step-00000002") and "episode/s" in captured.err
    with av.open(str(tmp_path / "videos" / "push.mp4")) as video:
        assert video.streams.video[0].frames == result["steps"] == 40 and video.streams.video[0].width == 256


def test_a_policy_of_another_robot_is_refused_before_the_first_step(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.sim.evaluate.do_all", lambda *_, **__: pytest.fail("took a step"))
    statistics = json.loads((copy / "statistics.json").read_text())
    statistics["action"] = {name: values * 2 for name, values in statistics["action"].items()}
    (copy / "statistics.json").write_text(json.dumps(statistics))
    with pytest.raises(UserError, match="its actions have 8 numbers, Meta-World's have 4"):
        evaluate(Who(str(copy)), ("push",), 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["expert", "--tasks", "pusch"], "no task 'pusch' in Meta-World; the nearest of its 50: push"),
        (["expert", "--tasks", "push", "--episodes", "0"], "--episodes is 0"),
        (["expert", "--tasks", "push", "--workers", "0"], "--workers is 0"),
        (["expert", "--tasks", "push", "--steps-per-chunk", "3"], "the policy predicts 1"),
        (["/nowhere", "--tasks", "push"], "/nowhere: no config.yaml there; expected the folder of a run"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert trainer("eval", *arguments) == 1
    out, err = capsys.readouterr()
    assert out == "" and message in err.splitlines()[-1] and err.splitlines()[-1].startswith("trainer: ")


def test_runs_that_cannot_act_are_refused(copy: Path) -> None:
    config = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(config.replace("dataset: ", "dataset: /nowhere"))
    with pytest.raises(UserError, match=r"its dataset /nowhere.* is gone.*--size"):
        LearnedPolicy(copy)
    assert LearnedPolicy(copy, (64, 64)).size == (64, 64)
    (copy / "config.yaml").write_text(
        config.replace("- corner2", "- corner5").replace("dataset: ", "dataset: /nowhere")
    )
    with pytest.raises(UserError, match="no camera 'corner5' in Meta-World"):
        LearnedPolicy(copy, (64, 64))
    (copy / "config.yaml").write_text(config)
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(UserError, match="no whole checkpoint"):
        LearnedPolicy(copy)
    (copy / "statistics.json").unlink()
    with pytest.raises(UserError, match=r"statistics.json: not readable"):
        LearnedPolicy(copy)


def test_every_task_has_an_expert_and_words() -> None:
    import metaworld

    assert {f"{task}-v3" for task in INSTRUCTIONS} == set(metaworld.env_dict.ALL_V3_ENVIRONMENTS)
    words = [each for wordings in INSTRUCTIONS.values() for each in wordings]
    assert len(set(words)) == len(words) and all(len(wordings) > 1 for wordings in INSTRUCTIONS.values())
    assert task_names("push-v3, push,reach") == ("push", "reach")
    assert wording("push", 1) != wording("push", 0) == wording("push", 3)
    assert wording("push", 1, known=("push the puck to the goal",)) == "push the puck to the goal"


def test_an_attempt_starts_where_no_demonstration_does_and_renders_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers: list[int] = []
    reset = World.reset
    monkeypatch.setattr(World, "reset", lambda self, number: (numbers.append(number), reset(self, number)))
    monkeypatch.setattr(World, "look", lambda *_, **__: pytest.fail("rendered"))
    assert attempt(Trial(Who("expert"), "reach", 7, None, None)).success
    assert numbers == [EVALUATION + 7]
