"""Text to embeddings, each prompt read once: kept in memory and, for encoders that come from files, on disk."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from diorama.pipelines.staging import StagedPipeline

MAX_TOKENS = 512


def embed(tokenizer: Any, encoder: Any, prompt: str, device: torch.device) -> Float[Tensor, "token dim"]:
    """The encoder's last states of one prompt's own tokens, at most 512; filling up with zeros is the reader's part."""
    tokens = tokenizer(prompt, max_length=MAX_TOKENS, truncation=True, return_tensors="pt")
    states = encoder(tokens.input_ids.to(device), attention_mask=tokens.attention_mask.to(device)).last_hidden_state
    return states[0].cpu()


class PromptCache:
    """Embeddings of prompts by one encoder, which `identity` tells from others; without identity nothing is written."""

    def __init__(self, identity: str | None = None) -> None:
        self.identity = identity
        self.seen: dict[str, Tensor] = {}

    @property
    def folder(self) -> Path:
        """The user's: DIORAMA_CACHE, else ~/.cache/diorama, and then `prompts`."""
        return Path(os.environ.get("DIORAMA_CACHE") or "~/.cache/diorama").expanduser() / "prompts"

    def get(self, prompt: str) -> Tensor | None:
        """What was put for a prompt, in this process or before; a damaged file counts as none."""
        if prompt not in self.seen and self.identity is not None:
            try:
                self.seen[prompt] = load_file(self._file(prompt))["embedding"]
            except (OSError, SafetensorError, KeyError):
                return None
        return self.seen.get(prompt)

    def put(self, prompt: str, embedding: Float[Tensor, "token dim"]) -> None:
        """Keep an embedding; a disk that cannot be written to is no error, the prompt is read again next time."""
        self.seen[prompt] = embedding
        if self.identity is None:
            return
        file = self._file(prompt)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            temporary = file.with_suffix(f".{os.getpid()}")
            temporary.write_bytes(save({"embedding": embedding.contiguous()}))
            temporary.replace(file)
        except OSError:
            pass

    def _file(self, prompt: str) -> Path:
        name = hashlib.sha256(f"{self.identity}\n{prompt}".encode()).hexdigest()
        return self.folder / f"{name}.safetensors"


def identity_of(files: Iterable[Path], dtype: torch.dtype) -> str:
    """What tells one encoder's files from another's without reading gigabytes: place, size and time of each."""
    facts = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(files)]
    return hashlib.sha256(repr((facts, str(dtype))).encode()).hexdigest()


class PromptedPipeline(StagedPipeline):
    """A pipeline that reads text; its encoder, the largest of all parts, need not be in memory for longer than that."""

    tokenizer: Any
    text_encoder: Any = None  # None where `text_source` reads it from disk when a prompt is new
    text_source: Callable[[], Any] | None = None
    prompts: PromptCache

    def read(self, prompts: Sequence[str]) -> list[Float[Tensor, "_ text_dim"]]:
        """Embeddings of prompts; the encoder is fetched only for those never read before."""
        fresh = [prompt for prompt in dict.fromkeys(prompts) if self.prompts.get(prompt) is None]
        if fresh:
            with self.text_stage() as encoder, torch.no_grad():
                for prompt in fresh:
                    self.prompts.put(prompt, embed(self.tokenizer, encoder, prompt, self.place))
        return [self.prompts.get(prompt) for prompt in prompts]  # type: ignore[misc]

    @contextmanager
    def text_stage(self) -> Iterator[Any]:
        """The text encoder on the device: the one in memory, or one read from disk that is dropped afterwards."""
        if self.text_encoder is not None:
            with self.visiting(self.text_encoder):
                yield self.text_encoder
            return
        if self.text_source is None:
            raise ValueError(f"{self.config.title} has no text encoder: give one, or prompts that were read before")
        encoder = self.text_source().requires_grad_(False)
        if self.offload == "blocks" and self.place.type != "cpu":
            self.by_blocks(encoder)
        else:
            encoder.to(self.place)
        try:
            yield encoder
        finally:
            del encoder
            if self.place.type == "cuda":
                torch.cuda.empty_cache()

    def save_pretrained(self, save_directory: str | os.PathLike[str], *rest: Any, **more: Any) -> None:
        """Write all parts, the text encoder among them, in the precision they are in."""
        if self.text_encoder is not None or self.text_source is None:
            super().save_pretrained(save_directory, *rest, **more)
            return
        self.register_modules(text_encoder=self.text_source())
        try:
            super().save_pretrained(save_directory, *rest, **more)
        finally:
            self.register_modules(text_encoder=None)
