"""VGGT: cameras, depth and points of unordered views (arXiv 2503.11651), from random weights or from trained ones."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from diorama.data.loading import Batch
from diorama.evaluation.metrics import depth_abs_rel
from diorama.evaluation.poses import auc, pair_errors
from diorama.geometry.cameras import Cameras
from diorama.geometry.similarity import Similarity
from diorama.models.vggt import SIZES, VGGT, VGGTOutput, codes_from_cameras
from diorama.pipelines.vggt import VGGTPipeline
from diorama.scene import Views
from diorama.training.data import Data, open_batches, open_held_out, sampling
from diorama.training.gen3r_losses import camera_code_loss, depth_edge_loss
from diorama.training.losses import point_loss
from diorama.training.parts import vggt_in
from diorama.training.trainer import WHOLE, Share, matrix_optimizers

SEEN = 8  # views of each scene in validation


@dataclass(frozen=True)
class Config(Data):
    """Training of VGGT; weights of the losses are the published code's."""

    size: str = "1B"
    """Row of VGGT's table of sizes."""
    start: Path | None = None
    """Folder of a VGGT of this size to begin from, published or saved."""
    views: tuple[int, ...] = tuple(range(2, 25))
    """Numbers of views that a scene may show; one is drawn per step."""
    image_size: tuple[int, int] = (518, 518)
    steps: int = 160_000
    muon_rate: float = 0.0
    """Peak rate of Muon for the blocks' matrices; 0 leaves everything to AdamW."""
    mirror: bool = False
    """Show half of the samples as their mirror image."""
    camera_weight: float = 5.0
    """Weight of the cameras' codes, after every refinement."""
    depth_weight: float = 1.0
    """Weight of the depth's losses: aleatoric, plain, and of its edges."""
    point_weight: float = 1.0
    """Weight of the points' losses: aleatoric and plain."""
    quantile: float = 0.98
    """Share of a batch's errors of depth and points that counts, the greatest being outliers."""
    title: str = "VGGT"
    """Name of the saved pipeline."""


class Truth(NamedTuple):
    """What VGGT should say: in the first camera's frame, where points are 1 away from it on average."""

    cameras: Cameras
    depth: Float[Tensor, "batch view height width"]
    points: Float[Tensor, "batch view height width 3"]
    mask: Bool[Tensor, "batch view height width"]


def truth(views: Views) -> Truth:
    """The views' geometry in VGGT's frame and unit; scenes without any depth keep their unit."""
    assert views.cameras is not None and views.points is not None and views.mask is not None and views.depth is not None
    poses, mask = views.cameras.camera_to_world[:, 0], views.mask
    away = (views.points - poses[:, None, None, None, :3, 3]).norm(dim=-1).where(mask, 0.0)
    mean = away.sum((1, 2, 3)) / mask.sum((1, 2, 3)).clamp(min=1)
    factor = torch.where(mean > 0, 1 / mean.clamp(min=1e-9), 1.0)
    rotation = poses[:, :3, :3].mT
    translation = -factor[:, None] * (rotation @ poses[:, :3, 3:])[..., 0]
    frame = Similarity(rotation, translation, factor)
    depth = views.depth * factor[:, None, None, None]
    return Truth(views.cameras.transformed(frame), depth, frame.apply(views.points), mask)


class VGGTStage:
    """Regression of cameras, depth and points."""

    def __init__(self, config: Config) -> None:
        torch.manual_seed(config.seed)
        self.config = config
        if min(config.views) < 1:
            raise ValueError(f"--views {min(config.views)}: accepted are 1 or more")
        self.model = VGGT(**SIZES[config.size])
        if config.start:
            found = vggt_in(config.start)
            wanted = {name: list(x) if isinstance(x, tuple) else x for name, x in SIZES[config.size].items()}  # as JSON
            if any((list(x) if isinstance(x := found.config[name], tuple) else x) != y for name, y in wanted.items()):
                raise ValueError(f"{config.start}: a VGGT of another size; accepted is --size {config.size}")
            self.model = found
        else:
            nn.init.constant_(self.model.readout.camera.code_branch[2].bias[7:], 0.2)  # type: ignore[index] # a relu at 0 would stay there
        drawn = sampling(config, patch=self.model.config.patch, tokens=1, known=config.views, targets=0)
        self.batches, self.held_out = open_batches(config, drawn, mirror=config.mirror), open_held_out(config)
        patch = self.model.config.patch
        cache = getattr(self.batches, "cache", None)
        size = config.image_size if cache is None else (cache.height, cache.width)
        for height, width in (size, (self.held_out.height, self.held_out.width)):
            if height % patch or width % patch:
                raise ValueError(f"images of {height}x{width}; accepted are multiples of {patch} pixels")
        self.side = max(size)
        self.modules: dict[str, nn.Module] = {"vggt": self.model}
        self.optimizers = {"geometry": matrix_optimizers(self.model, config, config.muon_rate)}

    def batch(self, step: int, share: Share = WHOLE) -> Batch:
        """Views of random scenes, half of them in the path's order."""
        return self.batches.batch(step, share)

    def phases(self, batch: Batch, generator: torch.Generator) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """The one phase: all heads."""
        views, complete = batch.views.to(self.model.device), batch.complete.to(self.model.device)
        yield "geometry", self.losses(self.model(views.images), truth(views), complete)

    def losses(self, made: VGGTOutput, true: Truth, complete: Bool[Tensor, " batch"]) -> dict[str, Tensor]:
        """All terms, weighted; a scene without depth, whose unit nothing tells, teaches no camera."""
        config, told = self.config, true.mask.flatten(1).any(1)
        codes = codes_from_cameras(true.cameras)[None]
        rows = told if told.any() else ~told  # all processes must have gradients of the same parameters
        camera = camera_code_loss(made.camera_codes[:, rows], codes[:, rows]) * told.any()
        # A depth is a point on the axis: its errors are counted as points' are.
        deep = [F.pad(depth[..., None], (2, 0)) for depth in (made.depth, true.depth)]
        depth = self._dense(deep[0], made.depth_confidence, deep[1], true.mask, complete)
        depth["edges"] = depth_edge_loss(made.depth, true.depth, true.mask)
        points = self._dense(made.points, made.points_confidence, true.points, true.mask, complete)
        losses = {"camera": config.camera_weight * camera}
        losses |= {f"depth_{name}": config.depth_weight * value for name, value in depth.items()}
        return losses | {f"point_{name}": config.point_weight * value for name, value in points.items()}

    def _dense(
        self, made: Tensor, confidence: Tensor, true: Tensor, mask: Tensor, complete: Bool[Tensor, " batch"]
    ) -> dict[str, Tensor]:
        """Aleatoric and plain distance; only of complete scenes is it known that there is no surface."""
        terms = point_loss(made, confidence, true, mask, quantile=self.config.quantile)
        if not complete.all():
            some = complete if complete.any() else ~complete
            empty = point_loss(made[some], confidence[some], true[some], mask[some])["empty"]
            terms["empty"] = empty * complete.any()
        return terms

    def validate(self) -> tuple[dict[str, float], Float[Tensor, "3 height width"]]:
        """AUC@30 of cameras, AbsRel of depth in each view's median, and photos above true and predicted depth."""
        count, last = min(16, len(self.held_out)), self.held_out.views - 1
        places = torch.linspace(0, last, min(SEEN, last + 1)).round().long()
        views = self.held_out.batch(torch.arange(count), places.expand(count, -1))
        self.model.eval()
        made, true = self.model(views.to(self.model.device).images), truth(views)
        self.model.train()
        depth = made.depth.cpu().float()
        error = depth_abs_rel(depth, true.depth, true.mask, alignment="median")
        values = {"depth_abs_rel": float(error[error.isfinite()].mean())}
        if len(places) > 1:
            worst = pair_errors(made.cameras.to("cpu").to(torch.float32), true.cameras).worst()
            values["auc_30"] = float(auc(worst, 30).mean())
        shown = [1 / x[:8, 0].clamp(min=0.1) for x in (true.depth.where(true.mask, torch.inf), depth)]
        rows = [views.images[:8, 0], *((x / x.amax((-1, -2), keepdim=True))[:, None].repeat(1, 3, 1, 1) for x in shown)]
        return values, torch.cat(list(torch.cat(rows, -2)), -1)

    def save(self, folder: Path) -> None:
        """Write a pipeline that reconstructs, and that `--poses vggt` and the adapter's stage read."""
        told: dict[str, Any] = dict(title=self.config.title, licence="Apache-2.0", side=self.side)
        VGGTPipeline(self.model, **told).save_pretrained(folder)
        self.batches.close()
