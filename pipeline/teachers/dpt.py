"""VGGT's dense heads: a DPT (arXiv 2103.13413) from the patch tokens of four layers to a map over the pixels."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from catalog.positions import POSITION_SCALE, position_grid

FRAMES_AT_ONCE = 8  # the largest map of 8 frames of 518 pixels is 1.1 GB at official sizes: bound them
LAST = 32  # channels before the last convolution, at every size of the network


class ResidualConv(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        # The published activation is in place, so the skip carries the rectified input: the weights expect that.
        x = x.relu()
        out: Tensor = x + self.conv2(self.conv1(x).relu())
        return out


class Fusion(nn.Module):
    """Joins the map of the coarser layers with the next finer one; the coarsest (`joins` False) has none to join."""

    def __init__(self, channels: int, joins: bool):
        super().__init__()
        if joins:
            self.resConfUnit1 = ResidualConv(channels)
        self.resConfUnit2 = ResidualConv(channels)
        self.out_conv = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, finer: Tensor | None, size: tuple[int, int]) -> Tensor:
        if finer is not None:
            x = x + self.resConfUnit1(finer)
        x = F.interpolate(self.resConfUnit2(x), size=size, mode="bilinear", align_corners=True)
        out: Tensor = self.out_conv(x)
        return out


class Scratch(nn.Module):
    """The parts that the checkpoint keeps under `scratch`: from four maps to one."""

    def __init__(self, channels: Sequence[int], features: int, out: int):
        super().__init__()
        self.layer1_rn, self.layer2_rn, self.layer3_rn, self.layer4_rn = (
            nn.Conv2d(c, features, 3, padding=1, bias=False) for c in channels
        )
        self.refinenet1, self.refinenet2, self.refinenet3 = (Fusion(features, joins=True) for _ in range(3))
        self.refinenet4 = Fusion(features, joins=False)
        self.output_conv1 = nn.Conv2d(features, features // 2, 3, padding=1)
        self.output_conv2 = nn.Sequential(
            nn.Conv2d(features // 2, LAST, 3, padding=1), nn.ReLU(), nn.Conv2d(LAST, out, 1)
        )

    def fuse(self, maps: Sequence[Tensor]) -> Tensor:
        """Four maps, finest first, -> [F, features / 2, 2h, 2w] with h, w of the finest."""
        one, two, three, four = maps
        one, two, three, four = self.layer1_rn(one), self.layer2_rn(two), self.layer3_rn(three), self.layer4_rn(four)
        x = self.refinenet4(four, None, three.shape[2:])
        x = self.refinenet3(x, three, two.shape[2:])
        x = self.refinenet2(x, two, one.shape[2:])
        x = self.refinenet1(x, one, (2 * one.shape[2], 2 * one.shape[3]))
        out: Tensor = self.output_conv1(x)
        return out


class DenseHead(nn.Module):
    """Patch tokens of four layers -> a map [B, V, H, W, out], before its activation (see `depth` and `points`)."""

    def __init__(self, in_channels: int, features: int, channels: Sequence[int], out: int, patch: int):
        super().__init__()
        self.patch = patch
        self.norm = nn.LayerNorm(in_channels)  # one for all four layers
        self.projects = nn.ModuleList(nn.Conv2d(in_channels, c, 1) for c in channels)
        first, second, _, fourth = channels
        self.resize_layers = nn.ModuleList(
            [
                nn.ConvTranspose2d(first, first, 4, stride=4),
                nn.ConvTranspose2d(second, second, 2, stride=2),
                nn.Identity(),
                nn.Conv2d(fourth, fourth, 3, stride=2, padding=1),
            ]
        )
        self.scratch = Scratch(channels, features, out)

    def forward(self, layers_BVNC: Sequence[Tensor], rows: int, columns: int) -> Tensor:
        """Four layers' tokens [B, V, rows * columns, C], as given in the config's order."""
        B, V = layers_BVNC[0].shape[:2]
        chunks = zip(*(torch.split(layer.flatten(0, 1), FRAMES_AT_ONCE) for layer in layers_BVNC), strict=True)
        maps_FHWO = torch.cat([self._frames(chunk, rows, columns) for chunk in chunks])
        return maps_FHWO.view(B, V, *maps_FHWO.shape[1:])

    def _frames(self, layers_FNC: Sequence[Tensor], rows: int, columns: int) -> Tensor:
        aspect = columns / rows  # also the image's: its sides are multiples of the patch
        maps = []
        for tokens_FNC, project, resize in zip(layers_FNC, self.projects, self.resize_layers, strict=True):
            tokens_FNC = self.norm(tokens_FNC.float())
            map_FCHW = tokens_FNC.transpose(1, 2).reshape(*tokens_FNC.shape[::2], rows, columns)
            maps.append(resize(_with_positions(project(map_FCHW), aspect)))
        x = self.scratch.fuse(maps)
        x = F.interpolate(x, size=(rows * self.patch, columns * self.patch), mode="bilinear", align_corners=True)
        map_FOHW: Tensor = self.scratch.output_conv2(_with_positions(x, aspect))
        return map_FOHW.permute(0, 2, 3, 1)


def _with_positions(map_FCHW: Tensor, aspect: float) -> Tensor:
    """The scaled position grid added. Its halves depend on one axis each, so only a row and a column are computed:
    the whole grid of a 518 pixel map would be 137 MB to make and to copy to the device in every call."""
    _, C, H, W = map_FCHW.shape
    u_WC = torch.from_numpy(position_grid(1, W, C, aspect)[0, :, : C // 2]).to(map_FCHW.device)
    v_HC = torch.from_numpy(position_grid(H, 1, C, aspect)[:, 0, C // 2 :]).to(map_FCHW.device)
    left = map_FCHW[:, : C // 2] + POSITION_SCALE * u_WC.T[:, None, :]
    return torch.cat([left, map_FCHW[:, C // 2 :] + POSITION_SCALE * v_HC.T[:, :, None]], dim=1)


def depth(map_BVHW2: Tensor) -> tuple[Tensor, Tensor]:
    """Depth and its confidence, each [B, V, H, W]."""
    return map_BVHW2[..., 0].exp(), 1 + map_BVHW2[..., 1].exp()


def points(map_BVHW4: Tensor) -> tuple[Tensor, Tensor]:
    """Points [B, V, H, W, 3] and their confidence [B, V, H, W]."""
    y = map_BVHW4[..., :3]
    return y.sign() * y.abs().expm1(), 1 + map_BVHW4[..., 3].exp()
