"""What a published model needs before it is there: bytes of weights and of tensors in between, stage by stage.

Every stage runs as in its pipeline, at full size, on tensors that have a shape and a precision but no numbers.
"""

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diorama.pipelines.staging import OFFLOADS

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
TEXT_TOKENS = 512


class Stage(NamedTuple):
    """Bytes on the device while one part works."""

    name: str
    weights: dict[Any, int]  # for every way to offload
    activations: int  # most at once, what earlier stages left there among them

    def together(self, offload: str) -> int:
        """Weights and activations."""
        return self.weights[offload] + self.activations


class LiveMemory(TorchDispatchMode):
    """Follows the storages that operations make, until each is dropped; `peak` is the most bytes alive at once.

    torch.distributed has a tracker by module, but none that is public.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: weakref.WeakSet[Any] = weakref.WeakSet()

    def hold(self, *values: Any) -> None:
        """Count tensors, wherever they are in lists and dictionaries, as alive from now on."""
        for tensor in tree_leaves(values):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage()) not in self.known:
                self.known.add(storage)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._drop, storage.nbytes()).atexit = False
        self.peak = max(self.peak, self.now)

    def _drop(self, count: int) -> None:
        self.now -= count

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.hold(result)
        return result


class FusedAttention(TorchFunctionMode):
    """Attention as its fused kernels need memory: the result and nothing of the size of all pairs of tokens."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            query, _, value = (*args, *(kwargs or {}).values())[:3]
            return query.new_empty(*query.shape[:-1], value.shape[-1])
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Request:
    """What is asked for."""

    views: int
    height: int
    width: int
    dtype: torch.dtype = torch.bfloat16

    def empty(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """A tensor without numbers."""
        return torch.empty(shape, dtype=dtype or self.dtype, device="meta")


@torch.no_grad()
def activation_bytes(module: nn.Module, function: Callable[..., Any], *inputs: Any) -> int:
    """Most bytes alive at once beside a module's weights, inputs and results among them, while a function uses it."""
    with LiveMemory() as memory, FusedAttention():
        for weight in (*module.parameters(), *module.buffers()):  # whose views are no new memory
            memory.known.add(weight.untyped_storage())
        memory.hold(inputs)
        function(*inputs)
    return memory.peak


def weight_bytes(*modules: nn.Module) -> int:
    """Of all parameters and buffers, shared ones once."""
    tensors = {id(x): x for module in modules for x in (*module.parameters(), *module.buffers())}
    return sum(x.numel() * x.element_size() for x in tensors.values())


def fetched_bytes(module: nn.Module) -> int:
    """Weights on the device where they are fetched while a module works: a block and the next, or the largest leaf."""
    blocks = getattr(module, "blocks", None)
    if blocks is None:
        return max(
            sum(p.numel() * p.element_size() for p in leaf.parameters(recurse=False)) for leaf in module.modules()
        )
    return weight_bytes(module) - weight_bytes(blocks) + 2 * max(weight_bytes(block) for block in blocks)


def plan(model: str, request: Request) -> list[Stage]:
    """All stages of one request to a published model, in their order; ways to offload are those of `StagedPipeline`.

    ValueError, in one line, for models, sizes and numbers of views that there are not.
    """
    if model not in PLANS:
        raise ValueError(f"plan of {model!r}: accepted are {', '.join(PLANS)}")
    return list(PLANS[model](request))


def _vggt(request: Request) -> Iterator[Stage]:
    from diorama.models.vggt import VGGT

    if request.views < 1 or request.height % 14 or request.width % 14 or min(request.height, request.width) < 14:
        found = f"{request.views} views of {request.height}x{request.width}"
        raise ValueError(f"{found}: VGGT accepts one view or more, multiples of 14 pixels")
    model = _made(VGGT, request.dtype)
    images = request.empty(1, request.views, 3, request.height, request.width)
    tokens = (request.height // 14) * (request.width // 14) + 5
    layers = [request.empty(1, request.views, tokens, 2048) for _ in range(4)]
    weights = dict.fromkeys(OFFLOADS, weight_bytes(model))
    yield Stage("tokens", weights, activation_bytes(model, model.encode, images))
    yield Stage("heads", weights, activation_bytes(model, model.decode, layers, request.height, request.width))


def _gen3r(request: Request) -> Iterator[Stage]:
    from diorama.pipelines.gen3r import CHUNK, SEEN, UNIT, Gen3RPipeline

    views, height, width = request.views, request.height, request.width
    if views % 4 != 1 or height % UNIT or width % UNIT or min(height, width) < UNIT:
        found = f"{views} views of {height}x{width}"
        raise ValueError(f"{found}: Gen3R accepts 4k + 1 views, multiples of {UNIT} pixels")
    parts = _gen3r_parts(request.dtype)
    resident = weight_bytes(*(part for name, part in parts.items() if name != "text_encoder"))

    def stage(name: str, part: str, function: Callable[..., Any], *inputs: Tensor, kept: int = 0) -> Stage:
        module = parts[part].readout if name == "heads" else parts[part]
        own = weight_bytes(module)
        weights = {
            "none": resident + (own if part == "text_encoder" else 0),  # which is dropped when the text is read
            "stages": own,
            "blocks": fetched_bytes(module) if part in Gen3RPipeline.by_block else own,
        }
        return Stage(name, weights, activation_bytes(parts[part], function, *inputs) + kept)

    empty, frames, h, w = request.empty, (views + 3) // 4, height // 8, width // 8
    latents = empty(1, 16, frames, h, w)
    text, clip, vae, adapter, vggt = (
        parts[name] for name in ("text_encoder", "image_encoder", "vae", "adapter", "vggt")
    )
    yield stage("text", "text_encoder", text, empty(1, TEXT_TOKENS, dtype=torch.int64))
    yield stage("photo", "image_encoder", _clip_states(clip), empty(1, 3, 224, 224))
    yield stage("known frames", "vae", vae.encode, empty(1, 3, views, height, width))
    yield stage("scale", "vggt", vggt, empty(1, min(SEEN, views), 3, height, width))
    state, known = empty(1, 16, frames, h, 2 * w, dtype=torch.float32), empty(1, 20, frames, h, 2 * w)
    read = (empty(1, TEXT_TOKENS, 4096), empty(1, 257, 1280), empty(1, 24, frames, height, 2 * width))
    kept = sum(x.numel() * x.element_size() for x in (known, *read))
    yield stage("denoiser", "transformer", _denoise(parts["transformer"]), state, known, *read)
    yield stage("video", "vae", vae.decode, latents, kept=kept)
    yield stage("geometry", "adapter", lambda x: adapter.decode(x, chunk=CHUNK), latents, kept=kept)
    packed = empty(1, adapter.config.channels, views, height // 14, width // 14)
    yield stage("heads", "vggt", _heads(vggt, height, width), packed, kept=kept)


PLANS: dict[str, Callable[[Request], Iterator[Stage]]] = {"gen3r": _gen3r, "vggt": _vggt}


def _gen3r_parts(dtype: torch.dtype) -> dict[str, Any]:
    """Gen3R's models at their published sizes; diffusers' and transformers' own defaults are those of Wan2.1."""
    from diffusers import AutoencoderKLWan
    from transformers import CLIPVisionConfig, CLIPVisionModel, UMT5Config, UMT5EncoderModel

    from diorama.models.gen3r_transformer import Gen3RTransformer
    from diorama.models.geometry_adapter import GeometryAdapter
    from diorama.models.vggt import VGGT

    text = UMT5Config(vocab_size=256384, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64)
    sizes = dict(hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=16)
    photo = CLIPVisionConfig(**sizes, image_size=224, patch_size=14, hidden_act="gelu")  # type: ignore[arg-type]
    return {
        "text_encoder": _made(lambda: UMT5EncoderModel(text), dtype),
        "image_encoder": _made(lambda: CLIPVisionModel(photo), dtype),
        "transformer": _made(Gen3RTransformer, dtype),
        "vae": _made(AutoencoderKLWan, dtype),
        "adapter": _made(GeometryAdapter, dtype),
        "vggt": _made(VGGT, dtype),
    }


def _made(kind: Callable[[], nn.Module], dtype: torch.dtype) -> Any:
    """A model without numbers; what loading keeps in float32 is so here."""
    with torch.device("meta"):
        model = nn.Module.to(kind().eval().requires_grad_(False), dtype)
    kept = dtype == torch.float16 or isinstance(model, ModelMixin)  # transformers' models keep nothing from bfloat16
    exact = set(getattr(model, "_keep_in_fp32_modules", None) or () if kept else ())
    for name, weight in model.named_parameters():
        if exact.intersection(name.split(".")):
            weight.data = weight.data.float()
    return model


def _clip_states(model: nn.Module) -> Callable[[Tensor], Any]:
    return lambda photo: model(photo, output_hidden_states=True).hidden_states[-2]


def _denoise(model: nn.Module) -> Callable[..., Any]:
    """The second branch of guidance, the first one's velocity waiting."""

    def step(state: Tensor, known: Tensor, text: Tensor, image: Tensor, control: Tensor) -> Tensor:
        first, inputs = torch.empty_like(state), torch.cat([state.to(known), known], 1)
        second = model(inputs, state.new_empty(1), text, image, control=control).sample.to(state)
        return state + second + 5 * (first - second)

    return step


def _heads(vggt: Any, height: int, width: int) -> Callable[[Tensor], Any]:
    from diorama.models.geometry_adapter import unpack_tokens

    return lambda packed: vggt.decode(unpack_tokens(packed), height, width)
