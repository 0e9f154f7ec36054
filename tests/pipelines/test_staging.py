"""Models that take turns: where each is while it works and while it waits."""

import pytest
import torch
from torch import nn

from diorama.pipelines.staging import StagedPipeline

ABSTRACT = ("encode", "null", "noise", "denoise", "decode", "reconstruct", "render", "prepared", "size_near")


class Part(nn.Linear):
    """Remembers where it was sent; nothing is computed on `meta`, so no second device is needed."""

    def __init__(self):
        super().__init__(2, 2)
        self.sent, self.dtype, self.device = [], torch.float32, torch.device("cpu")

    def to(self, *args, **kwargs):
        self.sent.append(torch.device(args[0]).type)
        return self


class Pipeline(StagedPipeline):
    """Two parts, one of which can fetch its blocks one by one."""

    by_block = ("one",)

    def __init__(self, one, two):
        super().__init__()
        self.register_modules(one=one, two=two)

    for name in ABSTRACT:
        vars()[name] = None


@pytest.fixture
def pipeline():
    return Pipeline(Part(), Part())


def test_without_offload_all_go_to_the_device_and_stay(pipeline):
    assert pipeline.to("meta") is pipeline
    assert pipeline.one.sent == pipeline.two.sent == ["meta"]
    with pipeline.visiting(pipeline.one):
        assert pipeline.one.sent == ["meta"]
    assert pipeline.one.sent == ["meta"]


def test_parts_wait_in_main_memory_and_visit_one_by_one(pipeline):
    pipeline.offloaded("stages").to("meta")
    assert pipeline.place == torch.device("meta") and pipeline.one.sent == []
    with pipeline.visiting(pipeline.one):
        assert pipeline.one.sent == ["meta"] and pipeline.two.sent == []
    assert pipeline.one.sent == ["meta", "cpu"]


def test_a_part_goes_back_when_its_work_fails(pipeline):
    pipeline.offloaded("stages").to("meta")
    with pytest.raises(RuntimeError, match="out of memory"), pipeline.visiting(pipeline.two):
        raise RuntimeError("out of memory")
    assert pipeline.two.sent == ["meta", "cpu"]


def test_diffusers_name_for_it(pipeline):
    pipeline.enable_model_cpu_offload(device="meta")
    assert (pipeline.offload, pipeline.place.type) == ("stages", "meta")


def test_blocks_are_fetched_by_the_part_itself(pipeline, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "diorama.pipelines.staging.apply_group_offloading", lambda module, place, **how: asked.append((module, how))
    )
    pipeline.offloaded("blocks").to("meta")
    pipeline.to("meta")
    assert asked == [(pipeline.one, {"use_stream": False, "offload_type": "leaf_level"})]
    with pipeline.visiting(pipeline.one, pipeline.two):
        assert pipeline.one.sent == [] and pipeline.two.sent == ["meta"]


def test_on_a_cpu_all_are_where_they_work(pipeline):
    pipeline.offloaded("blocks").to("cpu")
    assert not hasattr(pipeline.one, "fetches_blocks") and pipeline.one.sent == ["cpu"]


def test_ways_that_there_are_not(pipeline):
    with pytest.raises(ValueError, match=r"^offload 'disk': accepted are none, stages, blocks$"):
        pipeline.offloaded("disk")
    with pytest.raises(ValueError, match=r"^offload 'none': this pipeline's blocks are offloaded already; load it"):
        pipeline.offloaded("blocks").offloaded("none")
