"""What `gen3r_ablations.py` trains: Gen3R's parts in small, and denoisers that differ in what they make and how."""

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ablation.pointmaps import cameras_of, squashed, unsquashed
from diorama.models.gen3r_transformer import SIZES as DENOISERS
from diorama.models.geometry_adapter import SIZES as ADAPTERS
from diorama.models.geometry_adapter import GeometryAdapter
from diorama.models.vggt import VGGTOutput
from diorama.pipelines.gen3r import Gen3RPipeline
from diorama.pipelines.gen3r_conditions import Known, appearance_moments
from diorama.pipelines.gen3r_world import in_range
from diorama.scene import Condition, Views
from diorama.training import adapter, gen3r, vggt, video_vae
from diorama.training.adapter import AdapterStage
from diorama.training.gen3r import Batch, Gen3RStage
from diorama.training.parts import vggt_in
from diorama.training.trainer import WHOLE, Run, Share, Stage
from diorama.training.vggt import VGGTStage
from diorama.training.video_vae import VideoVAEStage

ROW = DENOISERS["tiny"] | {"num_layers": 4}  # of which ten minutes of a CPU make something
SMALL = dict(num_attention_heads=2, attention_head_dim=12, ffn_dim=32, num_layers=1, freq_dim=16, added_kv_proj_dim=24)
SHARED: dict[str, Any] = dict(final_rate=0.02, clip=1.0, log_every=20, save_every=100, validate_every=10**9)
TOLD: dict[str, Any] = dict(  # what is compared is one view with cameras: all steps go there
    camera_dropout=0.0, text_dropout=1.0, posterior="mean", scale="vggt", keep_latents=True, negative_prompt="",
    guidance=1.0, title="ablation", muon_rate=2e-3,
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What all arms share."""

    out: Path
    train: Path
    validation: Path
    test: Path
    given: Mapping[str, Path] = field(default_factory=dict)  # models by arm, which are not trained here
    frames: int = 9  # of a clip, the first of its world
    worlds: int = 256  # that denoisers are trained on: latents of these are made beforehand
    batch: int = 4
    device: str = "cpu"
    precision: str = "bf16-mixed"
    small: bool = False

    def model(self, arm: str) -> Path:
        """Folder of an arm's model, wherever it was trained."""
        return self.given.get(arm, self.out / arm / "model")

    @property
    def statistics_clips(self) -> int:
        """Clips whose latents' mean and deviation are measured."""
        return 2 if self.small else 64

    def autocast(self, enabled: bool = True) -> Any:
        """The precision of training."""
        half = enabled and self.precision == "bf16-mixed"
        return torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=half)


class Compared(Gen3RPipeline):
    """Gen3R whose scenes hold what it says of geometry as it is: predicted cameras, VGGT's frame and unit."""

    def decode(self, latents: Tensor, context: Any) -> tuple[list[Views], Tensor]:
        """Video, and the cloud that is compared, of clips of 4k + 1 views."""
        made = []
        for row in latents.float().split(1):
            images, found = self.told(row)
            made.append(Views(images, found.cameras.apart()[0], *self.cloud(found)))
        return made, latents.float()

    def told(self, latents: Tensor) -> tuple[Tensor, VGGTOutput]:
        """Frames and geometry of one clip's latents."""
        video, shape = latents.chunk(2, -1)
        return self.video(video), self.shaped(shape)

    def shaped(self, latents: Tensor) -> VGGTOutput:
        """Geometry in single precision, whatever the video was made in."""
        with torch.autocast(latents.device.type, enabled=False):
            return self.geometry(latents.float())

    @staticmethod
    def cloud(found: VGGTOutput) -> tuple[Float[Tensor, "view height width 3"], Float[Tensor, "view height width"]]:
        """Points, by depth and cameras, and 1 where the depth is one of a surface."""
        return found.cameras.unproject(found.depth)[0], in_range(found.depth[0]).float()


class TwoStage(Compared):
    """The denoiser makes the video alone; VGGT looks at it afterwards."""

    def noise(self, wanted: Sequence[Any], seeds: Sequence[int]) -> Tensor:
        """The left half of the same noise."""
        return super().noise(wanted, seeds).chunk(2, -1)[0]

    def denoise(self, latents: Tensor, t: float | Tensor, known: Known) -> Tensor:
        """The velocity of the left half."""
        half = known._replace(latents=known.latents.chunk(2, -1)[0], control=known.control.chunk(2, -1)[0])
        return super().denoise(latents, t, half)

    def told(self, latents: Tensor) -> tuple[Tensor, VGGTOutput]:
        """Frames, and what VGGT sees in them."""
        images = self.video(latents)
        with torch.autocast(latents.device.type, enabled=False):
            found = self.vggt(images[None].to(self.place))
        return images, VGGTOutput(found.cameras.to("cpu"), *(value.cpu() for value in found[1:]))


class PointMaps(Compared):
    """As WVD: the right half is a video of point maps, made and read by the video VAE; no adapter is asked."""

    def geometry(self, latents: Float[Tensor, "1 channel latent_frame h w"]) -> VGGTOutput:
        """Points, and cameras fitted to them."""
        inside = 2 * self.video(latents).movedim(1, -1) - 1
        points = unsquashed(inside)[None]
        cameras = cameras_of(points[0])
        forward = cameras.camera_to_world[:, None, None, :3, 2]
        depth = ((points[0] - cameras.centers[:, None, None]) * forward).sum(-1)[None]
        sure = torch.ones_like(depth)
        codes = torch.zeros(1, 1, cameras.views, 9)  # there is no camera head
        return VGGTOutput(type(cameras).stacked([cameras]), depth, sure, points, sure, codes)

    def shaped(self, latents: Tensor) -> VGGTOutput:
        """In the video's precision: the same network decodes it."""
        return self.geometry(latents)

    @staticmethod
    def cloud(found: VGGTOutput) -> tuple[Float[Tensor, "view height width 3"], Float[Tensor, "view height width"]]:
        """The points themselves, which need no camera."""
        return found.points[0], in_range(found.points[0].norm(dim=-1)).float()


def point_moments(vae: Any, seen: VGGTOutput) -> tuple[Tensor, Tensor]:
    """Moments of the video VAE's latents of VGGT's points (depth and cameras), shown as a clip."""
    inside = squashed(seen.cameras.unproject(seen.depth).float())
    return appearance_moments(vae, inside.permute(0, 4, 1, 2, 3).contiguous())


class OneView(Gen3RStage):
    """The joint stage, of the first frame and cameras alone, on worlds of which the latents are kept."""

    def __init__(self, config: gen3r.Config, worlds: int) -> None:
        super().__init__(config)
        assert self.data.cache is not None
        self.data.cache.seeds = self.data.cache.seeds[:worlds]  # of which scenes are drawn

    def batch(self, step: int, share: Share = WHOLE) -> Batch:
        """Clips of which the first frame is known."""
        made = super().batch(step, share)
        known = [Condition(item[:1], (0,), "") for item in made.views]
        return made._replace(conditions=known)

    def prepare(self, config: gen3r.Config) -> None:
        """Let the frozen models say what they have to, of every clip that may be drawn."""
        for scene in range(len(self.data)):
            clip = self.data.at([(scene, list(range(config.frames)))])
            known = [Condition(clip.views.apart()[0][:1], (0,), "")]
            batch = Batch(clip.views.images, clip.views.apart(), known, [False])
            self.latents(batch.images)
            self.known(batch)

    def validate(self) -> tuple[dict[str, float], Tensor]:
        """Nothing: arms are compared on test worlds when all are trained."""
        return {}, torch.zeros(3, 8, 8)


class VideoAlone(OneView):
    """The first of two stages."""

    kind = TwoStage

    def latents(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Appearance alone; means, as for all arms."""
        images = images.to(self.pipeline.place)
        return appearance_moments(self.pipeline.vae, 2 * images.transpose(1, 2) - 1)[0].float()


class VideoOfPoints(OneView):
    """The joint stage of WVD's latents."""

    kind = PointMaps

    def __init__(self, config: gen3r.Config, worlds: int) -> None:
        super().__init__(config, worlds)
        self.kept["geometry"].identity += b"point maps"  # else an adapter's would be read

    def _geometry(self, images: Tensor) -> Tensor:
        return torch.cat(point_moments(self.pipeline.vae, self.pipeline.vggt(images)), 1)


class Arm(NamedTuple):
    """One model to train."""

    what: str
    needs: tuple[str, ...]
    build: Callable[[Plan, Path, int], tuple[Stage, Run]]


def _common(plan: Plan, folder: Path, steps: int, rate: float) -> dict[str, Any]:
    told = dict(out=folder, data=plan.train, validation=plan.validation, device=plan.device, steps=steps)
    return SHARED | told | dict(learning_rate=rate, warmup=min(50, steps // 10), ema=0.99, precision=plan.precision)


def _vggt(plan: Plan, folder: Path, steps: int) -> tuple[Stage, Run]:
    views = tuple(sorted({2, max(2, plan.frames // 2), plan.frames}))
    told = dict(size="tiny", title="tiny VGGT", batch=plan.batch, views=views, mirror=True, muon_rate=2e-3)
    config = vggt.Config(**(_common(plan, folder, steps, 1e-3) | told))
    return VGGTStage(config), config


def _video_vae(plan: Plan, folder: Path, steps: int) -> tuple[Stage, Run]:
    told = dict(
        size="tiny", batch=1, frames=plan.frames, strides=(1,), starts=1, statistics_clips=plan.statistics_clips
    )
    config = video_vae.Config(**(_common(plan, folder, steps, 1e-3) | told))
    return VideoVAEStage(config), config


def _adapter(alignment: str) -> Callable[[Plan, Path, int], tuple[Stage, Run]]:
    def build(plan: Plan, folder: Path, steps: int) -> tuple[Stage, Run]:
        short = dict(short_frames=min(5, plan.frames), short_steps=steps // 4)
        told = dict(size="tiny", batch=plan.batch, frames=plan.frames, strides=(1,), starts=1, alignment=alignment)
        told |= dict(vggt=plan.model("vggt"), video_vae=plan.model("video-vae"))
        told |= dict(statistics_clips=plan.statistics_clips)
        config = adapter.Config(**(_common(plan, folder, steps, 5e-4) | told | short))
        return AdapterStage(config), config

    return build


def _denoiser(kind: type[OneView], adapter_arm: str | None) -> Callable[[Plan, Path, int], tuple[Stage, Run]]:
    def build(plan: Plan, folder: Path, steps: int) -> tuple[Stage, Run]:
        row = (SMALL if plan.small else ROW) | dict(tiled_rope=kind is not VideoAlone)
        gen3r.SIZES["ablation"] = row
        told = dict(size="ablation", model=joined(plan, adapter_arm), frames=plan.frames, strides=(1,), starts=1)
        config = gen3r.Config(**(_common(plan, folder, steps, 1e-3) | TOLD | told | dict(batch=plan.batch)))
        latents = folder / "latents"  # whatever arms have in common is made once
        if not latents.is_symlink():
            folder.mkdir(parents=True, exist_ok=True)
            (plan.out / "latents").mkdir(exist_ok=True)
            latents.symlink_to((plan.out / "latents").resolve())
        return kind(config, plan.worlds), config

    return build


def joined(plan: Plan, adapter_arm: str | None) -> Path:
    """A pipeline of trained parts, with an adapter of random weights where the arm asks none."""
    folder = plan.out / "joined" / (adapter_arm or "none")
    parts = folder.with_name(f"{folder.name}-parts")
    chosen = {"vggt": plan.model("vggt"), "video_vae": plan.model("video-vae")}
    chosen |= {"adapter": plan.model(adapter_arm)} if adapter_arm else {}
    for name, source in chosen.items():
        link = parts / name / "model"
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(source.resolve())
        if link.resolve() != source.resolve():
            raise ValueError(f"{folder}: joined of another {name} before; accepted is the same, or a new --out")
    if (folder / "model_index.json").exists():
        return folder
    if not adapter_arm:
        torch.manual_seed(0)
        told = dict(channels=10 * vggt_in(chosen["vggt"]).config.dim, latent_channels=16)
        none = dict(latents_mean=[0.0] * 16, latents_std=[1.0] * 16)
        GeometryAdapter(**(told | ADAPTERS["tiny"] | none)).save_pretrained(parts / "adapter/model")
    with recipes() as module:
        module("tiny_gen3r").join(parts, folder)
    return folder


@contextmanager
def recipes() -> Any:
    """Import from the recipes, which are no package."""
    place = str(Path(__file__).parents[2] / "recipes")
    sys.path.insert(0, place)
    try:
        yield importlib.import_module
    finally:
        sys.path.remove(place)


def prepared(name: str, plan: Plan) -> None:
    """Make the latents that a denoiser is trained on, in nobody's budget; what is there is not made again."""
    stage, config = ARMS[name].build(plan, plan.out / name, 1)
    if isinstance(stage, OneView):
        assert isinstance(config, gen3r.Config)
        with torch.no_grad(), plan.autocast():
            stage.prepare(config)


FOUNDATIONS, ADAPTED = ("vggt", "video-vae"), ("adapter", "adapter-none")
ARMS = {
    "vggt": Arm("VGGT", (), _vggt),
    "video-vae": Arm("video VAE", (), _video_vae),
    "adapter": Arm("adapter, aligned to the video's latents by KL", FOUNDATIONS, _adapter("video")),
    "adapter-none": Arm("adapter without KL", FOUNDATIONS, _adapter("none")),
    "two-stage": Arm("denoiser of video alone, then VGGT", FOUNDATIONS, _denoiser(VideoAlone, None)),
    "wvd": Arm("denoiser of video and point maps", FOUNDATIONS, _denoiser(VideoOfPoints, None)),
    "joint": Arm("denoiser of video and adapter latents", ("adapter",), _denoiser(OneView, "adapter")),
    "joint-none": Arm("the same, adapter without KL", ("adapter-none",), _denoiser(OneView, "adapter-none")),
}
PIPELINES: dict[str, type[Compared]] = {
    "joint": Compared, "joint-none": Compared, "two-stage": TwoStage, "wvd": PointMaps,
}  # fmt: skip
