"""VGGT alone: photos without cameras become a scene with cameras, depth and points, in one pass without diffusion."""

import re
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from diorama.geometry.cameras import Cameras
from diorama.models.checkpoints import WEIGHTS_FILE, check_weights, convert
from diorama.models.downloads import DOWNLOADS
from diorama.models.perceptual import cache_folder
from diorama.models.published import read_config, read_weights
from diorama.models.vggt import VGGT, VGGTOutput
from diorama.pipelines.base import PUBLISHED_VGGT, ScenePipeline, embedded_models, find_model
from diorama.scene import Condition, Scene, Views

LICENCE = "CC-BY-NC-4.0"  # of facebook/VGGT-1B
COMMERCIAL = ("vggt_1B_commercial.pt", "vggt-aup-license")  # the same model trained on other data, and its terms
MIN_DEPTH = 1e-4  # of the point head's points, which may lie behind their camera


class VGGTPipeline(ScenePipeline):
    """Reconstructs given photos and makes no other views: there is nothing to sample and nothing to render again."""

    vggt: VGGT

    def __init__(self, vggt: VGGT, *, title: str = "VGGT", licence: str = "unknown", side: int | None = None) -> None:
        """`side`: pixels of the longer side that it was trained at; its encoder's, where nothing else is known."""
        super().__init__()
        self.register_modules(vggt=vggt)
        self.register_to_config(title=title, licence=licence, side=side)
        vggt.eval()

    @classmethod
    def load_folder(cls, folder: Path) -> "VGGTPipeline":
        """Load a saved pipeline, a VGGT as published, or a folder with one of these in vggt/, as Gen3R's; in float32.

        ValueError, in one line, for a folder without weights and for weights that are missing, unknown or unreadable.
        """
        index = folder / "model_index.json"
        home = folder / "vggt" if (folder / "vggt").is_dir() else folder
        options: dict[str, Any] = {"licence": _licence(home)}
        if index.is_file():
            document = read_config(index)
            if document.get("_class_name") == cls.__name__:
                options = {key: value for key, value in document.items() if key[0] != "_" and key != "vggt"}
            elif {"title", "licence", "pixels"} <= document.keys():  # a part of another pipeline, and as large as that
                options = {"title": f"VGGT of {document['title']}", "licence": document["licence"]}
                options["side"] = round(float(document["pixels"]) ** 0.5)
        try:
            made = cls(read_vggt(home), **options)
            most = made.vggt.config.encoder_grid * made.vggt.config.patch
            if made.config.side is not None and made.config.side >= most:
                made.register_to_config(side=None)
            return made
        except TypeError as error:
            raise ValueError(f"{index}: not a {cls.__name__} ({str(error).splitlines()[0]})") from None

    def size_near(self, height: int | float, width: int | float) -> tuple[int, int]:
        """The nearest height and width in whole patches."""
        patch = self.vggt.config.patch
        tall, wide = (max(1, round(side / patch)) * patch for side in (height, width))
        return tall, wide

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """The size at which photos of `height` and `width` are looked at: the longer side as in training.

        The published code crops upright photos to squares; here they are seen whole.
        """
        side = self.config.side or self.vggt.config.encoder_grid * self.vggt.config.patch
        scale = side / max(height, width)
        return self.size_near(height * scale, width * scale)

    def cameras_of(self, images: Float[Tensor, "view 3 height width"]) -> Cameras:
        """Cameras of photos at their own size, in the first one's frame and in a scale of VGGT's own."""
        height, width = images.shape[-2:]
        cameras, _ = self._seen(images, self.size_of(height, width))
        return cameras.resized(height, width)

    def reconstruct(
        self,
        views: Views,
        wanted: Cameras | None = None,
        *,
        size: tuple[int, int] | None = None,
        points: str = "depth",
    ) -> Scene:
        """The photos at a size of the model's (or at `size`, in whole patches), with all that VGGT says of them.

        The world is the first camera's frame in a scale of VGGT's own; cameras that the photos have are not read.
        `points` are unprojected depths, or the point "head"'s, moved onto their pixels' rays. ValueError for `wanted`.
        """
        if wanted is not None:
            raise ValueError(f"{self.config.title} shows the photos that it is given, no others: leave `wanted` out")
        if points not in ("depth", "head"):
            raise ValueError(f"points {points!r}: accepted are 'depth' and 'head'")
        if views.images.ndim != 4:
            raise ValueError(f"photos of shape {tuple(views.images.shape)}: accepted is (views, 3, height, width)")
        photos = views.images.cpu().float()
        height, width = photos.shape[-2:]
        size = self.size_of(height, width) if size is None else size
        cameras, output = self._seen(photos, size)
        depth, confidence = output.depth[0].cpu(), output.depth_confidence[0].cpu()
        if points == "head":
            depth = Views(fitted(photos, *size), output.cameras.apart()[0].to("cpu"), output.points[0].cpu()).depth
            confidence = output.points_confidence[0].cpu()
        assert depth is not None
        valid = depth.isfinite() & confidence.isfinite() & (depth > MIN_DEPTH)
        surface = cameras.unproject(torch.where(valid, depth, 1.0))
        shown = Views(fitted(photos, *size), cameras, surface, torch.where(valid, confidence, 0.0))
        known = Condition(Views(photos, cameras.resized(height, width)), tuple(range(len(photos))))
        settings = {"known_views": len(photos), "points": points}
        return Scene(shown, known, provenance=self.provenance(None, settings))

    @torch.no_grad()
    def _seen(self, photos: Float[Tensor, "view 3 height width"], size: tuple[int, int]) -> tuple[Cameras, VGGTOutput]:
        """Cameras in the first one's frame, which VGGT's own is only nearly, and the model's answer."""
        images = fitted(photos, *size).to(self.device)
        # As published: the heads leave half precision by themselves.
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            output = self.vggt(images[None])
        cameras = output.cameras.apart()[0].path()
        return cameras.relative_to(cameras.camera_to_world[0]), output

    def _nothing_else(self, *_: Any, **__: Any) -> NoReturn:
        title = self.config.title
        raise ValueError(f"{title} makes no views but the photos' own: accepted is 'diorama reconstruct' with photos")

    generate = prepared = encode = null = noise = denoise = decode = render = _nothing_else  # type: ignore[assignment]


def fitted(
    photos: Float[Tensor, "view 3 old_height old_width"], height: int, width: int
) -> Float[Tensor, "view 3 height width"]:
    """Photos as VGGT was trained to see them: resized by antialiased cubic interpolation."""
    return F.interpolate(photos.cpu().float(), (height, width), mode="bicubic", antialias=True).clamp(0, 1)


def located(folder: str | Path = "", *, embedded: bool = False) -> Path:
    """The folder of a VGGT: as given, also by a file or a model's name, else `vggt` in the user's cache of weights.

    Then Hugging Face's own cache is looked in, then a Gen3R that was downloaded, and at the end, if `embedded`, the
    models that come with the package. ValueError, with where it was looked for and how it gets there.
    """
    home = Path(folder) if str(folder) else cache_folder("vggt")
    if str(folder) in {*embedded_models(), *DOWNLOADS} - {"vggt"} and not home.exists():
        home = find_model(folder)[1]
    home = home.parent if home.is_file() and home.name in PUBLISHED_VGGT else home
    if holds_vggt(home):
        return home
    if not str(folder):
        from huggingface_hub import try_to_load_from_cache

        cached = [try_to_load_from_cache("facebook/VGGT-1B", name) for name in PUBLISHED_VGGT]
        if found := next((Path(path) for path in cached if isinstance(path, str)), None):
            return found.parent
        names = ["gen3r"] * _whole(cache_folder("gen3r")) + embedded_models() * embedded
        if held := next((place for name in names if holds_vggt(place := find_model(name)[1])), None):
            return held
    place = f" --out {folder}" if str(folder) else ""
    fetch = f"'diorama download vggt{place}' fetches facebook/VGGT-1B (5 GB, {LICENCE}), which is read as it is"
    layouts = f"config.json with {' or '.join(PUBLISHED_VGGT)}, or a saved one"
    raise ValueError(f"{home}: holds no VGGT ({layouts}); {fetch}")


def _whole(folder: Path) -> bool:
    """Whether a download is there and came to its end."""
    return folder.is_dir() and not any(folder.rglob(".*.part"))


def holds_vggt(folder: Path) -> bool:
    """Whether a folder looks like a VGGT's, or has one in vggt/."""
    names = (*PUBLISHED_VGGT, WEIGHTS_FILE)
    return any((place / name).is_file() for place in (folder, folder / "vggt") for name in names)


def is_vggt(folder: Path) -> bool:
    """Whether a folder looks like a VGGT and nothing more, saved as a pipeline or as published; or its file does."""
    if folder.is_file():
        return folder.name in PUBLISHED_VGGT
    index = folder / "model_index.json"
    if index.is_file():
        return re.search(rf'"_class_name":\s*"{VGGTPipeline.__name__}"', index.read_text(errors="replace")) is not None
    return any((folder / name).is_file() for name in PUBLISHED_VGGT)


def read_vggt(folder: Path) -> VGGT:
    """The model in a folder as published (one of PUBLISHED_VGGT, perhaps config.json) or as saved, in float32.

    ValueError, in one line, for weights that are missing, unknown, misshapen or unreadable.
    """
    if (folder / WEIGHTS_FILE).is_file():
        check_weights(VGGT, folder)
        return VGGT.from_pretrained(folder, torch_dtype=torch.float32)
    if not any((folder / name).is_file() for name in PUBLISHED_VGGT):
        names = (*PUBLISHED_VGGT, WEIGHTS_FILE)
        raise ValueError(f"{folder}: found no {', no '.join(names)}; one of these holds a VGGT")
    file = folder / "config.json"
    config = read_config(file) if file.is_file() else {}  # model.pt is often fetched alone
    arguments, state = convert("vggt", read_weights(folder), config, source=file)
    with torch.device("meta"):
        model = VGGT(**arguments)
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
    return model


def _licence(folder: Path) -> str:
    """The licence in a published model card's front matter; without one, that of the file that is published so."""
    card, (file, other) = folder / "README.md", COMMERCIAL
    text = card.read_text(errors="replace") if card.is_file() else ""
    front = text.split("---")[1] if text.startswith("---") else ""
    named = dict(re.findall(r"^(license|license_name):\s*(\S+)\s*$", front, re.MULTILINE))
    licence = named.get("license_name", named.get("license", other if (folder / file).is_file() else LICENCE))
    return LICENCE if licence.lower() == LICENCE.lower() else licence
