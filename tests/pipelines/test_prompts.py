"""Prompts are read once, by an encoder that is in memory no longer than it must."""

import os
from types import SimpleNamespace

import pytest
import torch
from tests import published_gen3r as published

from diorama.models.published import read_gen3r
from diorama.pipelines.prompts import MAX_TOKENS, PromptCache, PromptedPipeline, embed, identity_of

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def parts(gen3r_folder):
    return read_gen3r(gen3r_folder, dtype=torch.float32, only=["text_encoder", "tokenizer"])


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DIORAMA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/prompts"


class Reader(PromptedPipeline):
    """What reads text, without the rest of a pipeline; counts how often its encoder is fetched."""

    def __init__(self, parts, identity=None):
        self.__dict__ |= {"tokenizer": parts["tokenizer"], "fetched": [], "prompts": PromptCache(identity)}
        self.__dict__["text_source"] = lambda: self.fetched.append(1) or parts["text_encoder"]

    for name in ("encode", "null", "noise", "denoise", "decode", "reconstruct", "render", "prepared", "size_near"):
        vars()[name] = None


@torch.no_grad()
def test_filling_up_changes_nothing(parts):
    """The published code fills each prompt up to 512 tokens, masks these and cuts them off again."""
    prompt = "a red room, 2 chairs."
    filled = parts["tokenizer"](prompt, padding="max_length", max_length=MAX_TOKENS, return_tensors="pt")
    whole = parts["text_encoder"](filled.input_ids, attention_mask=filled.attention_mask).last_hidden_state
    found = embed(parts["tokenizer"], parts["text_encoder"], prompt, CPU)
    assert len(found) == int(filled.attention_mask.sum()) < 30
    torch.testing.assert_close(found, whole[0, : len(found)], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_long_prompts_end_at_the_limit(parts):
    assert len(embed(parts["tokenizer"], parts["text_encoder"], "a b " * 600, CPU)) == MAX_TOKENS
    assert len(embed(parts["tokenizer"], parts["text_encoder"], "", CPU)) >= 1


def test_the_encoder_is_fetched_for_new_prompts_only(parts):
    reader = Reader(parts)
    one, two, again = reader.read(["a", "b", "a"])
    assert torch.equal(one, again) and not torch.equal(one[:1], two[:1]) and len(reader.fetched) == 1
    assert torch.equal(reader.read(["b"])[0], two) and len(reader.fetched) == 1
    reader.read(["c"])
    assert len(reader.fetched) == 2


def test_prompts_outlive_the_process(parts, cache):
    first, second, other = Reader(parts, "one"), Reader(parts, "one"), Reader(parts, "two")
    found = first.read(["a"])[0]
    assert len(list(cache.iterdir())) == 1
    assert torch.equal(second.read(["a"])[0], found) and not second.fetched
    other.read(["a"])
    assert len(other.fetched) == 1 and len(list(cache.iterdir())) == 2


def test_without_identity_nothing_is_written(parts, cache):
    Reader(parts).read(["a"])
    assert not cache.exists()


def test_a_damaged_file_is_read_again(parts, cache):
    Reader(parts, "one").read(["a"])
    (file,) = cache.iterdir()
    file.write_bytes(file.read_bytes()[:20])
    again = Reader(parts, "one")
    again.read(["a"])
    assert len(again.fetched) == 1 and PromptCache("one").get("a") is not None


def test_a_disk_that_cannot_be_written_to_is_no_error(parts, cache):
    cache.parent.mkdir()
    cache.write_text("in the way")
    assert Reader(parts, "one").read(["a"])[0].shape[1] == published.TEXT


def test_an_encoder_is_known_by_its_files(tmp_path):
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for file in files:
        file.write_bytes(b"12345678")
        os.utime(file, ns=(0, 0))
    one = identity_of(files, torch.bfloat16)
    assert identity_of(files[::-1], torch.bfloat16) == one != identity_of(files, torch.float32)
    os.utime(files[1], ns=(0, 1))
    assert identity_of(files, torch.bfloat16) != one


def test_no_encoder_at_all(parts):
    class Titled(Reader):
        config = SimpleNamespace(title="Reader")
        text_source = None

    reader = Titled(parts)
    del reader.__dict__["text_source"]
    with pytest.raises(ValueError, match=r"^Reader has no text encoder: give one, or prompts that were read before$"):
        reader.read(["a"])
