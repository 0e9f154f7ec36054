"""Solvers, what steps share, and presets, each against the models alone or a closed form."""

import re
from itertools import pairwise

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from tests.miniature import DIM, SIDE, TOKENS, dit3d, images, observed_memory, path, pipeline

from diorama.flow import uniform_sigmas
from diorama.pipelines.gen3r import Gen3RPipeline
from diorama.pipelines.sampling import settled, solver
from diorama.pipelines.tokens import TokenPipeline
from diorama.scene import Condition, Views

CAMERAS = path()
PHOTO = Condition(Views(images()), (0,))
TIMES = [1.5 * t / (1 + 0.5 * t) for t in (1.0, 0.8, 0.6, 0.4, 0.2, 0.0)]  # of five steps of the miniature


def test_quality_is_what_comes_without_a_preset(model):
    plain, named = model.generate(PHOTO, CAMERAS, seed=3), model.generate(PHOTO, CAMERAS, seed=3, speed="quality")
    assert torch.equal(plain.latents, named.latents) and torch.equal(plain.views.images, named.views.images)
    assert plain.provenance == named.provenance
    assert TokenPipeline.speeds["quality"] == Gen3RPipeline.speeds["quality"] == {}


@pytest.mark.parametrize("kind", [TokenPipeline, Gen3RPipeline])
def test_presets_have_the_same_names_and_what_is_asked_for_wins(kind):
    assert list(kind.speeds) == ["quality", "balanced", "fast"]
    config = {"title": "it", "steps": 50, "guidance": 2.0}
    for name, preset in kind.speeds.items():
        common, own = settled(config, kind.speeds, name, {"steps": 7, "guidance": 3.0, "interval": None})
        assert (common["steps"], common["guidance"]) == (7, 3.0)
        assert common["interval"] == preset.get("interval", (0.0, 1.0))
        assert own == {key: value for key, value in preset.items() if key in ("backbone", "memory")}


@pytest.mark.parametrize("speed", ["balanced", "fast"])
def test_a_model_of_few_steps_keeps_those_that_it_was_made_for(speed):
    config = {"title": "distilled", "steps": 4, "guidance": 1.0}
    own = dict(steps=4, guidance=1.0, interval=(0.0, 1.0))
    rest = {"memory": False} if speed == "fast" else {}
    assert settled(config, TokenPipeline.speeds, speed, {}) == (own, rest)
    assert settled(config, TokenPipeline.speeds, speed, {"solver": "unipc"})[0] == own | {"solver": "unipc"}


@pytest.mark.parametrize("name", ["balanced", "fast"])
def test_a_preset_is_the_settings_that_it_names(name):
    model = pipeline(memory=observed_memory(), steps=50)
    made = model.generate(PHOTO, CAMERAS, seed=3, speed=name, steps=4)
    spelled = model.generate(PHOTO, CAMERAS, seed=3, **TokenPipeline.speeds[name] | {"steps": 4})
    assert torch.equal(made.latents, spelled.latents) and torch.equal(made.views.images, spelled.views.images)
    assert made.provenance.settings == spelled.provenance.settings
    assert made.provenance.settings["steps"] == 4


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (dict(speed="best"), "speed 'best': accepted by miniature are quality, balanced, fast"),
        (dict(solver="heun"), "solver 'heun': accepted are euler, unipc"),
        (dict(backbone=(0.2, 0.5)), "backbone [0.2, 0.5]: accepted are times between 1 and 0, in falling order"),
        (dict(backbone=(1.0, 0.5)), "backbone [1.0, 0.5]: accepted are times between 1 and 0, in falling order"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(model, asked, said):
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        model.generate(PHOTO, CAMERAS, **asked)


def euler(steps, shift=3.0, *, stock=False):
    made = FlowMatchEulerDiscreteScheduler(shift=shift)
    made.set_timesteps(steps) if stock else made.set_timesteps(sigmas=uniform_sigmas(steps))
    return made


def along(name, scheduler, x, velocity):
    scheme = solver(name, scheduler)
    for time in scheduler.timesteps:
        x = scheme.step(velocity(x, float(time) / 1000), time, x, return_dict=False)[0]
    return x


@pytest.mark.parametrize("stock", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_unipc_is_exact_along_straight_paths(steps, stock):
    data, noise = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
    found = along("unipc", euler(steps, stock=stock), noise, lambda x, t: noise - data)
    torch.testing.assert_close(found, data, atol=1e-4, rtol=0)


def gaussian_error(name, steps):
    """Of a flow to data of deviation 0.3, where the velocity is linear in x and ends at 0.3 times the noise."""
    spread, noise = 0.3, torch.linspace(-2, 2, 9, dtype=torch.float64)[None]

    def velocity(x, t):
        return x * (t - (1 - t) * spread**2) / ((1 - t) ** 2 * spread**2 + t**2)

    return float((along(name, euler(steps, 1.0), noise, velocity) - spread * noise).abs().max())


def test_unipc_comes_nearer_to_a_linear_equations_solution_in_a_quarter_of_the_steps():
    assert 1.8 < gaussian_error("euler", 20) / gaussian_error("euler", 40) < 2.2  # the first order that Euler has
    assert gaussian_error("unipc", 12) < 0.7 * gaussian_error("euler", 50)
    assert gaussian_error("unipc", 20) < 0.3 * gaussian_error("euler", 80)
    assert gaussian_error("unipc", 80) < 1e-3


def test_the_denoiser_is_asked_at_the_same_times_by_both_solvers(model, monkeypatch):
    asked, denoise = {}, model.denoise
    for name in ("euler", "unipc"):
        times = asked[name] = []
        monkeypatch.setattr(model, "denoise", lambda x, t, known, times=times: times.append(t) or denoise(x, t, known))
        model.generate(PHOTO, CAMERAS, steps=5, solver=name)
    assert asked["unipc"] == asked["euler"] == pytest.approx(TIMES[:-1])


@torch.no_grad()
def known_tokens(model):
    """What DiT3D is told of the photo, and of the poses alone."""
    local = CAMERAS.normalized()[0].plucker()[None]
    pictures = torch.zeros(1, 3, 3, SIDE, SIDE)
    pictures[:, 0] = PHOTO.views.images
    flags = torch.tensor([[True, False, False]])
    encode, normalize = model.autoencoder.encode, model.autoencoder.normalize
    return [normalize(encode(pictures, local, visible)) for visible in (flags, flags & False)]


@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.0, 0.75)], ids=["guided", "guided late"])
@torch.no_grad()
def test_between_the_times_only_the_head_is_asked(model, interval):
    """Steps 0, 2 and 3 ask; where guidance begins, at step 2, both branches do."""
    known, blind = known_tokens(model)
    x, states, asked = torch.randn(TOKENS, DIM, generator=torch.Generator().manual_seed(7))[None], {}, []
    for step, (t, following) in enumerate(pairwise(TIMES)):
        velocities = []
        for name, tokens in (("known", known), ("blind", blind)):
            guides = interval[0] <= t <= interval[1]
            if name == "blind" and not guides:
                continue
            state = None if step in (0, 2, 3) else states[name]
            asked.append(state is None)
            output = model.denoiser(x, torch.tensor([t]), tokens, state=state)
            states[name] = output.state
            velocities.append(output.velocity)
        guided = velocities[0] if len(velocities) == 1 else velocities[1] + 2 * (velocities[0] - velocities[1])
        x = x + (following - t) * guided
    calls, backbone = [], model.denoiser.backbone
    model.denoiser.backbone = lambda noisy, *what, **more: calls.append(len(noisy)) or backbone(noisy, *what, **more)
    try:
        settings = dict(seed=7, steps=5, interval=interval)
        scene = model.generate(PHOTO, CAMERAS, backbone=(0.8, 0.6), **settings)
    finally:
        del model.denoiser.backbone
    assert sum(calls) == sum(asked) and len(calls) == 3
    torch.testing.assert_close(scene.latents, model.autoencoder.denormalize(x)[0], atol=1e-4, rtol=1e-4)
    assert (scene.latents - model.generate(PHOTO, CAMERAS, **settings).latents).abs().max() > 1e-3
    every = model.generate(PHOTO, CAMERAS, backbone=(0.9, 0.75, 0.6, 0.4), **settings).latents
    assert torch.equal(every, model.generate(PHOTO, CAMERAS, **settings).latents)


def test_guidance_that_begins_between_the_times_asks_for_the_other_branch(model):
    settings = dict(seed=7, steps=5, interval=(0.0, 0.75))
    shared = model.generate(PHOTO, CAMERAS, backbone=(0.1,), **settings)  # steps 1, 3 and 4 reuse, step 2 cannot
    apart = model.generate(PHOTO, CAMERAS, backbone=(0.75,), **settings)
    assert torch.equal(shared.latents, apart.latents)


@pytest.mark.parametrize("speed", ["balanced", "fast"])
def test_a_list_is_as_if_each_was_asked_for_alone_at_any_speed(speed):
    model = pipeline(steps=50)
    asked = [(PHOTO, CAMERAS), (Condition(), CAMERAS), (PHOTO, path(2, seed=3))]
    together = model.generate(*map(list, zip(*asked, strict=True)), seed=[1, 2, 3], speed=speed)
    for seed, (request, scene) in enumerate(zip(asked, together, strict=True), 1):
        alone = model.generate(*request, seed=seed, speed=speed)
        assert (scene.latents - alone.latents).abs().max() <= 1e-4
        assert (scene.views.images - alone.views.images).abs().max() <= 1e-4


def test_known_views_are_not_looked_at_again_where_that_is_not_wanted():
    model = pipeline(memory=observed_memory())
    scene = model.generate(PHOTO, CAMERAS, seed=2, memory=False)
    plain = model.forgetful().generate(PHOTO, CAMERAS, seed=2)
    assert torch.equal(scene.views.images, plain.views.images) and scene.observed is None
    assert not torch.equal(scene.views.images, model.generate(PHOTO, CAMERAS, seed=2).views.images)
    torch.testing.assert_close(model.render(scene, CAMERAS).images, scene.views.images, atol=1e-5, rtol=0)


@torch.no_grad()
def test_keys_and_values_of_what_is_known_are_computed_once_for_all_steps():
    model = pipeline()
    model.register_modules(denoiser=dit3d(1, condition="prefix"))
    known, blind = known_tokens(model)
    x = torch.randn(TOKENS, DIM, generator=torch.Generator().manual_seed(7))[None]
    for t, following in pairwise(TIMES):
        one, other = (model.denoiser(x, torch.tensor([t]), tokens).velocity for tokens in (known, blind))
        x = x + (following - t) * (other + 2 * (one - other) if t <= 0.75 else one)
    computed, prefix = [], model.denoiser.prefix
    model.denoiser.prefix = lambda tokens, *what: computed.append(len(tokens)) or prefix(tokens, *what)
    scene = model.generate(PHOTO, CAMERAS, seed=7, steps=5, interval=(0.0, 0.75))
    assert computed == [2]
    torch.testing.assert_close(scene.latents, model.autoencoder.denormalize(x)[0], atol=1e-4, rtol=1e-4)
