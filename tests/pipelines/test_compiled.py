import logging
import os
import stat

import jaxtyping
import pytest
import torch
from tests.miniature import images, path, pipeline

from diorama.nn.embeddings import RayEmbed
from diorama.pipelines import compiled
from diorama.pipelines.base import load
from diorama.scene import Condition, Shot, Views

CONDITION = Condition(Views(images()), (0,))


@pytest.fixture
def folder(tmp_path):
    pipeline().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DIORAMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(compiled.ARTEFACTS, "")  # so that it is as before afterwards
    monkeypatch.delenv(compiled.ARTEFACTS)
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # which only tests switch on, and nothing compiles
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def graphs():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def same(one, two, atol=1e-5):
    for name in ("images", "points", "confidence"):
        torch.testing.assert_close(getattr(one.views, name), getattr(two.views, name), atol=atol, rtol=1e-4)
    torch.testing.assert_close(one.latents, two.latents, atol=atol, rtol=1e-4)


def test_compiled_scenes_are_the_same_and_known_shapes_are_not_compiled_again(folder, monkeypatch):
    monkeypatch.setattr(compiled, "BACKEND", "eager")  # captures whole graphs as any other; runs them as they are
    plain, fast = load(folder, "cpu"), load(folder, "cpu", compile=True)
    same(fast.generate(CONDITION, path(), seed=3), plain.generate(CONDITION, path(), seed=3))
    assert fast.compilation.reason == "" and fast.compilation.seconds > 0
    before, seconds = graphs(), fast.compilation.seconds
    same(fast.generate(CONDITION, path(), seed=4), plain.generate(CONDITION, path(), seed=4))
    four = path(4)  # three views are decoded as four; only what is sampled without guidance is of another shape
    scene = fast.generate(CONDITION, four, seed=5)
    same(scene, plain.generate(CONDITION, four, seed=5))
    assert graphs() == before > 3 and fast.compilation.seconds == seconds
    same(fast.generate(CONDITION, four, seed=5, guidance=1.0), plain.generate(CONDITION, four, seed=5, guidance=1.0))
    assert graphs() == before + 1 and fast.compilation.seconds > seconds


@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("default")  # the compiler's own are not ours
def test_real_compilation_agrees_and_is_found_again(folder):
    if reason := compiled.no_compiler(torch.device("cpu")):
        pytest.skip(f"torch.compile does not work here: {reason}")
    torch._dynamo.reset()
    counted = torch._dynamo.utils.counters["inductor"]
    plain = load(folder, "cpu")
    for _ in range(2):
        fast = load(folder, "cpu", compile=True)
        before = counted["fxgraph_cache_hit"]
        same(fast.generate(CONDITION, path(), seed=3), plain.generate(CONDITION, path(), seed=3), atol=1e-4)
        assert fast.compilation.reason == ""
        torch._dynamo.reset()  # forgets all but what is on the disk
    assert counted["fxgraph_cache_hit"] >= before + 3
    assert any(file.is_file() for file in compiled.own_artefacts().rglob("*"))


def test_gen3r_is_compiled_by_block_and_leaves_blocks_out_as_before(gen3r_folder, gen3r_home, monkeypatch):
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    plain, fast = load(gen3r_folder, "cpu"), load(gen3r_folder, "cpu", compile=True)
    condition, shot = Condition(Views(images(1, 112, 112)), (0,)), Shot(5, 112, 112)
    first = graphs()
    same(*(model.generate(condition, shot, steps=2) for model in (fast, plain)), atol=1e-3)
    assert fast.compilation.reason == "" and graphs() > first
    before = graphs()
    cached = [model.generate(condition, shot, steps=4, step_cache=0.99) for model in (fast, plain)]
    same(*cached, atol=1e-3)
    assert fast.compilation.reason == "" and graphs() == before


def test_without_a_compiler_it_says_so_in_one_line_and_goes_on(folder, monkeypatch, caplog):
    def backend(graph, inputs):
        raise RuntimeError("no C++ compiler\nwas found")

    monkeypatch.setattr(compiled, "BACKEND", backend)
    fast = load(folder, "cpu", compile=True)
    same(fast.generate(CONDITION, path(), seed=3), load(folder, "cpu").generate(CONDITION, path(), seed=3))
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        "compile: not possible here (no C++ compiler); goes on without"
    ]


def test_what_fails_in_the_middle_is_said_once_and_made_without(folder, monkeypatch, caplog):
    def backend(graph, inputs):
        if len(graph.graph.nodes) > 20:  # not so the trial
            raise RuntimeError("too long\nfor this compiler")
        return graph.forward

    monkeypatch.setattr(compiled, "BACKEND", backend)
    fast = load(folder, "cpu", compile=True)
    assert fast.compilation.reason == ""
    same(fast.generate(CONDITION, path(), seed=3), load(folder, "cpu").generate(CONDITION, path(), seed=3))
    fast.generate(CONDITION, path(2), seed=3)
    told = [record.getMessage() for record in caplog.records if record.name == compiled.__name__]
    assert told == ["compile: not possible here (too long); goes on without"]


def test_mistakes_are_told_as_without_compilation(folder, monkeypatch):
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    fast = load(folder, "cpu", compile=True)
    latents = torch.zeros(1, *fast.autoencoder.latent_mean.shape)
    with torch.no_grad(), pytest.raises(ValueError, match="both sides must be multiples of 8"):
        fast.autoencoder.decode(fast.autoencoder.cache(latents), torch.zeros(1, 1, 6, 12, 12))


def test_whole_counts_hold_all_views_and_are_few():
    counts = {views: compiled.whole_count(views) for views in range(1, 33)}
    assert all(views <= whole for views, whole in counts.items())
    assert sorted(set(counts.values())) == [1, 2, 4, 8, 16, 24, 32]


def test_artefacts_are_kept_where_only_their_owner_writes(tmp_path, monkeypatch):
    folder = compiled.own_artefacts()
    assert folder == tmp_path / "cache" / "compiled" and stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert os.environ[compiled.ARTEFACTS] == str(folder)
    monkeypatch.delenv(compiled.ARTEFACTS)
    folder.chmod(0o777)
    with pytest.raises(ValueError, match=r"^[^\n]*compiled: others can write compiled code there[^\n]+$"):
        compiled.own_artefacts()
    assert compiled.ARTEFACTS not in os.environ
    monkeypatch.setenv(compiled.ARTEFACTS, str(tmp_path / "named"))
    assert compiled.own_artefacts() == tmp_path / "named"


def test_pipelines_that_are_not_compiled_say_so(folder):
    whole = load(folder, "cpu")
    whole.offload = "blocks"
    with pytest.raises(ValueError, match=r"^compile with offload 'blocks'[^\n]+accepted are none and stages$"):
        compiled.compile_pipeline(whole, torch.device("cpu"))
    whole.__class__ = type("Other", (type(whole),), {})
    with pytest.raises(ValueError, match=r"^a Other is not compiled; accepted are TokenPipeline, Gen3RPipeline[^\n]+$"):
        compiled.compile_pipeline(whole, torch.device("cpu"))


def test_half_precision_keeps_rays_and_statistics(folder):
    plain, half = load(folder, "cpu"), load(folder, "cpu", dtype=torch.bfloat16)
    for model in (half.autoencoder, half.denoiser):
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
        assert {buffer.dtype for buffer in model.buffers() if buffer.is_floating_point()} == {torch.float32}
    one, two = (model.generate(CONDITION, path(), seed=3, steps=2) for model in (plain, half))
    assert two.latents.dtype == two.views.images.dtype == torch.float32
    error = (one.views.images - two.views.images).square().mean().sqrt()
    assert 0 < error < 0.1 * one.views.images.std()


def test_neighbouring_rays_stay_apart_in_half_precision():
    torch.manual_seed(0)
    embed = RayEmbed(16, 8, 6, products=True)
    rays = torch.tensor([0.6987, 0.6997]).reshape(2, 1, 1, 1).expand(2, 6, 8, 8)  # both round to one bfloat16
    assert (rays.bfloat16() == rays.bfloat16()[0, 0, 0, 0]).all()
    seen = torch.zeros(2, dtype=torch.bool)
    whole = embed(rays, seen).diff(dim=0)
    half = embed.to(torch.bfloat16)
    half.octaves = torch.pi * 2.0 ** torch.arange(6)
    assert whole.norm() > 0 and (half(rays, seen).float().diff(dim=0) - whole).norm() < 0.4 * whole.norm()
