"""Configs that have a name. `trainer presets NAME` prints one as YAML, to start a file from."""

from trainer.config import AlignmentConfig, DataConfig, ModelConfig, OptimiserConfig, RunConfig

METAWORLD = "examples/metaworld"
VIEWS = ("corner2", "gripperPOV")

PRESETS: dict[str, RunConfig] = {
    # The real code, tiny: seconds on a CPU. No cache needed.
    "debug": RunConfig(
        data=DataConfig(dataset=METAWORLD, episodes="0:2", views=("corner2",)),
        model=ModelConfig(
            image_size=32, patch_size=8, vision_width=16, vision_layers=1, width=32, layers=2, heads=2, chunk=4
        ),
        alignment=AlignmentConfig(layer=1, teacher="vggt-mini"),
        optimiser=OptimiserConfig(lr=1e-3, warmup=2),
        batch_size=2,
        steps=8,
        checkpoint_every=3,
        out="runs/debug",
    ),
    # Two views, all episodes of the example; the loss visibly falls. Compare the arms with alignment.mode.
    "demo": RunConfig(
        data=DataConfig(dataset=METAWORLD, cache="demo/metaworld.zarr", views=VIEWS),
        alignment=AlignmentConfig(mode="cached", layer=2, teacher="vggt-mini"),
        optimiser=OptimiserConfig(lr=1e-3, warmup=5),
        batch_size=8,
        steps=60,
        checkpoint_every=30,
        out="demo/run",
    ),
}
