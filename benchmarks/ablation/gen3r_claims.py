"""What `gen3r_ablations.py` compares: Gen3R's tables 3 to 5, each ordering a paired difference over test worlds."""

import json
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ablation.claims import Verdict, compared, farther
from ablation.gen3r_arms import PIPELINES, Compared, Plan, PointMaps, joined, point_moments
from diorama.data.cache import WorldsCache
from diorama.evaluation.clouds import cloud_errors
from diorama.evaluation.metrics import psnr
from diorama.evaluation.poses import auc, pair_errors
from diorama.geometry.cameras import Cameras
from diorama.models.geometry_adapter import GeometryAdapter, pack_tokens, unpack_tokens
from diorama.models.vggt import VGGTOutput
from diorama.pipelines.gen3r_conditions import appearance_moments, latent_statistics
from diorama.scene import Condition, Views
from diorama.training.clips import in_range
from diorama.training.parts import adapter_in, vggt_in, video_vae_in

Scores = dict[str, Float[Tensor, " scene"]]
STEPS = 10  # of sampling, without guidance
TOGETHER = 4  # clips sampled at once
APART = 2  # pixels between the points of a cloud that are compared, along rows and columns
STILL = 1.5  # dB by which one view with cameras should beat that view repeated
KEPT = 1.04, 0.02  # share of VGGT's Chamfer distance, and AUC, that the paper's adapter loses at most (tables 3 and 8)
NUMBERS = ("psnr", "accuracy", "completeness", "chamfer", "chamfer_percent", "auc_30")


class Evaluated:
    """The trained arms on the test worlds; an arm's scores are made once and stay beside its model."""

    def __init__(self, plan: Plan, scenes: int, say: Callable[[str], None] = print) -> None:
        self.plan, self.say = plan, say
        cache_ = WorldsCache(plan.test, allow_test=True)
        if len(cache_) < scenes or cache_.views < plan.frames:
            found = f"{plan.test}: {len(cache_)} worlds of {cache_.views} views"
            raise ValueError(f"{found}; accepted are {scenes} of {plan.frames} (--test-scenes, --frames), or more")
        places = torch.arange(plan.frames)[None]
        self.clips = [cache_.batch(torch.tensor([row]), places).apart()[0] for row in range(scenes)]
        self.settings = {"scenes": cache_.seeds[:scenes], "frames": plan.frames, "steps": STEPS, "apart": APART}

    def scores(self, name: str, make: Callable[[], Scores]) -> Scores:
        """What `make` measures, unless a file holds it for the same worlds."""
        file = self.plan.out / "scores" / f"{name}.json"
        found = json.loads(file.read_text()) if file.exists() else {}
        if found.get("settings") != self.settings:
            self.say(f"measuring: {name}")
            made = make()
            found = {"settings": self.settings, "scores": {key: value.tolist() for key, value in made.items()}}
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(found) + "\n")
        return {key: torch.tensor(value, dtype=torch.float64) for key, value in found["scores"].items()}

    def generated(self, name: str) -> Scores:
        """A denoiser from the first view, with cameras: pictures, cloud and cameras of what it makes."""
        return self.scores(f"generated-{name}", lambda: self._generated(name))

    def autoencoded(self, name: str) -> Scores:
        """Geometry of clips that are all known, by VGGT (`vggt`) or what an autoencoder leaves of that."""
        return self.scores(f"vae-only-{name}", lambda: self._autoencoded(name))

    @torch.no_grad()
    def _generated(self, name: str) -> Scores:
        pipeline = PIPELINES[name].load_folder(self.plan.model(name), torch.float32, offload="none")
        pipeline.to(self.plan.device).set_progress_bar_config(disable=True)
        rows = []
        for start in range(0, len(self.clips), TOGETHER):
            clips = self.clips[start : start + TOGETHER]
            known, paths = [Condition(clip[:1], (0,), "") for clip in clips], [clip.cameras for clip in clips]
            seeds = list(range(start, start + len(clips)))
            with self.plan.autocast():
                scenes: Any = pipeline.generate(known, paths, seed=seeds, steps=STEPS, guidance=1.0)  # type: ignore[arg-type]
            for scene, clip in zip(scenes, clips, strict=True):
                quality = psnr(scene.views.images[1:].float(), clip.images[1:]).mean()
                rows.append({"psnr": float(quality)} | geometry_scores(scene.views, clip))
        return stacked(rows)

    @torch.no_grad()
    def _autoencoded(self, name: str) -> Scores:
        kind: type[Compared] = PointMaps if name == "wvd" else Compared
        rows = []
        for clip in self.clips:
            found = self.rebuilt(name, clip)
            points, valid = kind.cloud(found)
            cameras = found.cameras.apart()[0]
            rows.append(geometry_scores(Views(clip.images, cameras, points, valid), clip))
        return stacked(rows)

    def rebuilt(self, name: str, clip: Views) -> VGGTOutput:
        """What VGGT says of a clip, after an autoencoder of its tokens or of its points."""
        images, vggt = clip.images[None].to(self.plan.device), self.part("vggt")
        height, width = images.shape[-2:]
        if name in ("vggt", "wvd"):
            found = vggt(images)
            if name == "wvd":
                with self.plan.autocast():
                    found = self.points().geometry(point_moments(self.part("video-vae"), found)[0].float())
        else:
            adapter: GeometryAdapter = self.part(name)
            tokens = pack_tokens(vggt.encode(images), height // 14, width // 14)
            found = vggt.decode(unpack_tokens(adapter.decode(adapter.encode(tokens).mean)), height, width)
        return VGGTOutput(found.cameras.to("cpu"), *(value.cpu() for value in found[1:]))

    @cache  # noqa: B019 - one object, which lives as long as the program
    def points(self) -> PointMaps:
        """What decodes point maps."""
        made = PointMaps.load_folder(joined(self.plan, None), torch.float32, offload="none")
        return made.to(self.plan.device)

    @cache  # noqa: B019
    def part(self, name: str) -> Any:
        """A frozen model of an arm."""
        read = {"vggt": vggt_in, "video-vae": video_vae_in}.get(name, adapter_in)
        return read(self.plan.model(name)).eval().requires_grad_(False).to(self.plan.device)

    @cache  # noqa: B019
    @torch.no_grad()
    def latents(self, name: str) -> Float[Tensor, "scene channel latent_frame h w"]:
        """Means of all clips' latents as the denoiser reads them: of the `video-vae`, or of an adapter."""
        self.say(f"latents: {name}")
        made = []
        for clip in self.clips:
            images = clip.images[None].to(self.plan.device)
            if name == "video-vae":
                with self.plan.autocast():
                    mean = appearance_moments(self.part(name), in_range(images))[0]
            else:
                tokens = pack_tokens(self.part("vggt").encode(images), images.shape[-2] // 14, images.shape[-1] // 14)
                mean = self.part(name).encode(tokens).mean
            made.append(mean.float().cpu())
        return torch.cat(made)

    def as_trained(self, name: str) -> Float[Tensor, "scene channel latent_frame h w"]:
        """An adapter's latents before they were normalised by what was measured when it was trained."""
        mean, std = latent_statistics(self.part(name), self.latents(name))
        return self.latents(name) * std + mean

    def repeated(self) -> Float[Tensor, " scene"]:
        """PSNR of the first frame in place of all others."""
        each = [psnr(clip.images[:1].expand_as(clip.images[1:]), clip.images[1:]).mean() for clip in self.clips]
        return torch.stack(each).double()


def geometry_scores(made: Views, truth: Views) -> dict[str, float]:
    """Cloud errors after Gen3R's alignment of corresponding pixels, and AUC@30 of the cameras, which needs none."""
    assert made.points is not None and made.mask is not None and made.cameras is not None
    assert truth.points is not None and truth.mask is not None and truth.cameras is not None
    pixels = (slice(None), slice(None, None, APART), slice(None, None, APART))
    points, true, mask, given = (x[pixels] for x in (made.points.float(), truth.points, truth.mask, made.mask))
    errors = cloud_errors(points, true, mask, given=given, samples=None)
    cameras: Cameras = made.cameras.to(torch.float32)
    return errors._asdict() | {"auc_30": float(auc(pair_errors(cameras, truth.cameras).worst(), 30))}


def stacked(rows: list[dict[str, float]]) -> Scores:
    """Numbers of scenes side by side."""
    return {key: torch.tensor([row[key] for row in rows], dtype=torch.float64) for key in rows[0]}


def positions(latents: Float[Tensor, "scene channel latent_frame h w"]) -> Float[Tensor, "position channel"]:
    """A row of channels for every second place of every clip, along rows and columns: neighbours say much the same."""
    return latents[..., ::2, ::2].movedim(1, -1).flatten(0, 3)


def pairs(first: Scores, second: Scores, claim: str) -> list[Verdict]:
    """The three numbers of what is generated."""
    wanted = (("psnr", "PSNR, 1 view, cameras", "higher"), ("chamfer_percent", "Chamfer, % of the scene", "lower"))
    wanted += (("auc_30", "AUC@30", "higher"),)
    return [compared(claim, number, first[key], second[key], expected) for key, number, expected in wanted]


def alignment(of: Evaluated) -> list[Verdict]:
    """Table 4, without L_KL."""
    video, scenes = of.latents("video-vae"), len(of.clips)
    rows = torch.arange(scenes).repeat_interleave(len(positions(video)) // scenes)
    claim, verdicts = "KL brings the adapter's latents nearer to the video's", []
    for number, latents in (("as trained", of.as_trained), ("normalised", of.latents)):
        both = [latents(name) for name in ("adapter", "adapter-none")]
        sets = [positions(x) for x in (*both, video)]
        verdicts.append(farther(claim, f"Fréchet distance of latents, {number}", sets, rows, "lower"))
        gaps = [(x - video).square().flatten(1).mean(1).sqrt().double() for x in both]
        verdicts.append(compared(claim, f"distance at the same place, {number}", *gaps, "lower"))
    return verdicts + pairs(of.generated("joint"), of.generated("joint-none"), "with KL better than without")


def joint(of: Evaluated) -> list[Verdict]:
    """Table 4, 2-Stage."""
    return pairs(of.generated("joint"), of.generated("two-stage"), "joint better than two-stage")


def baselines(of: Evaluated) -> list[Verdict]:
    """What any generation from one view with cameras should beat."""
    claim = f"joint beats the first frame repeated by {STILL} dB"
    return [compared(claim, "PSNR, 1 view, cameras", of.generated("joint")["psnr"], of.repeated() + STILL, "higher")]


def vae_only(of: Evaluated) -> list[Verdict]:
    """Table 3, VAE only, and table 8."""
    plain, adapted = of.autoencoded("vggt"), of.autoencoded("adapter")
    share, lost = KEPT
    chamfer, area = ("chamfer_percent", "Chamfer, % of the scene"), ("auc_30", "AUC@30")
    return [
        compared(
            f"the adapter keeps VGGT's points (Chamfer up to {share} of it)", chamfer[1], adapted[chamfer[0]],
            share * plain[chamfer[0]], "lower",
        ),
        compared(
            f"the adapter keeps VGGT's cameras (AUC less {lost} at most)", area[1], adapted[area[0]],
            plain[area[0]] - lost, "higher",
        ),
    ]  # fmt: skip


def output_compression(of: Evaluated) -> list[Verdict]:
    """Table 3, WVD (VAE only), and tables 1, 2 and 5, WVD."""
    adapted, points = of.autoencoded("adapter"), of.autoencoded("wvd")
    claim = "VAE only: tokens by the adapter better than point maps by the video VAE"
    found = [
        compared(claim, "Chamfer, % of the scene", adapted["chamfer_percent"], points["chamfer_percent"], "lower"),
        compared(claim, "AUC@30", adapted["auc_30"], points["auc_30"], "higher"),
    ]
    return found + pairs(of.generated("joint"), of.generated("wvd"), "aligned tokens better than point maps (WVD)")


class Claim(NamedTuple):
    """A comparison and the arms that it reads."""

    compared: Callable[[Evaluated], list[Verdict]]
    arms: tuple[str, ...]


CLAIMS = {
    "alignment": Claim(alignment, ("joint", "joint-none")),
    "joint": Claim(joint, ("joint", "two-stage")),
    "baselines": Claim(baselines, ("joint",)),
    "vae-only": Claim(vae_only, ("adapter",)),
    "wvd": Claim(output_compression, ("joint", "wvd")),
}
