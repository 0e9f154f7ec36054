"""LPIPS against its published arithmetic, on random weights in the published layout."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from diorama.models import perceptual
from diorama.models.perceptual import LPIPS, Unavailable, Worlds64, load_lpips

# What torchvision's and lpips' files hold: convolutions by their number in `features` as (number, in, out, size).
PUBLISHED = {
    "vgg": [
        *((0, 3, 64, 3), (2, 64, 64, 3), (5, 64, 128, 3), (7, 128, 128, 3), (10, 128, 256, 3), (12, 256, 256, 3)),
        *((14, 256, 256, 3), (17, 256, 512, 3), (19, 512, 512, 3), (21, 512, 512, 3)),
        *((24, 512, 512, 3), (26, 512, 512, 3), (28, 512, 512, 3)),
    ],
    "alex": [(0, 3, 64, 11), (3, 64, 192, 5), (6, 192, 384, 3), (8, 384, 256, 3), (10, 256, 256, 3)],
}
HEADS = {"vgg": (64, 128, 256, 512, 512), "alex": (64, 192, 384, 256, 256)}
FILES = {"vgg": ("vgg16-397923af", "vgg"), "alex": ("alexnet-owt-7be5be79", "alex")}


def pictures(count: int = 2, side: int = 32, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def trunk_state(net: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    state = {"classifier.6.bias": torch.zeros(1000)}
    for number, before, after, size in PUBLISHED[net]:
        weight = torch.randn(after, before, size, size, generator=generator)
        state[f"features.{number}.weight"] = weight * (2 / before / size**2) ** 0.5
        state[f"features.{number}.bias"] = 0.1 * torch.randn(after, generator=generator)
    return state


def head_state(net: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {f"lin{i}.model.1.weight": torch.rand(1, w, 1, 1, generator=generator) for i, w in enumerate(HEADS[net])}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's cache with both trunks, one in the old file format that VGG16 was published in, and their heads."""
    folder = tmp_path_factory.mktemp("cache") / "lpips"
    folder.mkdir()
    for net, (trunk, heads) in FILES.items():
        torch.save(trunk_state(net), folder / f"{trunk}.pth", _use_new_zipfile_serialization=net != "vgg")
        save_file(head_state(net), folder / f"{heads}.safetensors")
    return folder.parent


@pytest.fixture(scope="module")
def nets(cache: Path) -> dict[str, LPIPS]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIORAMA_CACHE", str(cache))
        return {net: load_lpips(net) for net in PUBLISHED}


def spelled_out(net: str, a: Tensor, b: Tensor) -> Tensor:
    """The published arithmetic in double precision, a layer at a time."""
    trunk, heads = ({n: t.double() for n, t in s.items()} for s in (trunk_state(net), head_state(net)))

    def outputs(images: Tensor) -> list[Tensor]:
        shift, scale = (torch.tensor(v, dtype=torch.float64) for v in ((-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)))
        x, kept = ((2 * images.double() - 1).movedim(1, -1) - shift) / scale, []
        x = x.movedim(-1, 1)
        for number, _, _, size in PUBLISHED[net]:
            weight, bias = trunk[f"features.{number}.weight"], trunk[f"features.{number}.bias"]
            if net == "vgg":
                x = F.max_pool2d(x, 2) if number in (5, 10, 17, 24) else x
                x = F.conv2d(x, weight, bias, padding=1).clamp(min=0)
                kept += [x] if number in (2, 7, 14, 21, 28) else []
            else:
                x = F.max_pool2d(x, 3, 2) if number in (3, 6) else x
                x = F.conv2d(x, weight, bias, stride=4 if size == 11 else 1, padding=size // 2 if size < 11 else 2)
                x = x.clamp(min=0)
                kept.append(x)
        return [x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10) for x in kept]

    return sum(
        (heads[f"lin{i}.model.1.weight"] * (x - y) ** 2).sum(1).mean((-1, -2))
        for i, (x, y) in enumerate(zip(outputs(a), outputs(b), strict=True))
    )


@pytest.mark.parametrize("net", PUBLISHED)
def test_lpips_is_the_published_arithmetic(nets, net):
    a, b = pictures(seed=0), pictures(seed=1)
    with torch.no_grad():
        torch.testing.assert_close(nets[net](a, b).double(), spelled_out(net, a, b), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("net", PUBLISHED)
def test_lpips_is_a_distance_that_gradients_flow_through(nets, net):
    a, b = pictures(seed=0).requires_grad_(), pictures(seed=1)
    assert nets[net].name == f"lpips_{net}"
    assert nets[net](b, b).tolist() == [0, 0]
    there = nets[net](a, b)
    assert (there > 0.01).all()
    torch.testing.assert_close(there, nets[net](b, a))
    there.sum().backward()
    assert a.grad is not None and a.grad.isfinite().all() and a.grad.abs().amax((1, 2, 3)).min() > 0
    assert not any(p.requires_grad for p in nets[net].parameters())


def test_lpips_grows_with_the_difference(nets):
    a, noise = pictures(1), pictures(1, seed=3) - 0.5
    with torch.no_grad():
        distances = [nets["alex"](a, (a + amount * noise).clamp(0, 1)).item() for amount in (0.05, 0.2, 0.8)]
    assert distances == sorted(distances)


def test_gradients_stay_finite_where_all_features_are_zero():
    net = LPIPS("alex")
    for parameter in net.features.parameters():
        torch.nn.init.zeros_(parameter)
    a = pictures(1).requires_grad_()
    net(a, pictures(1, seed=1)).sum().backward()
    assert a.grad is not None and a.grad.isfinite().all()


@pytest.mark.skipif(find_spec("torchmetrics") is None, reason="no torchmetrics")
def test_the_published_heads_fit(monkeypatch, tmp_path):
    """torchmetrics ships the files of the lpips package, so a user who has it needs the trunk alone."""
    monkeypatch.setenv("DIORAMA_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    torch.save(trunk_state("alex"), tmp_path / "hub/checkpoints/alexnet-owt-7be5be79.pth")
    heads = [p for n, p in load_lpips("alex").named_parameters() if n.startswith("lin")]
    assert [tuple(p.shape) for p in heads] == [(1, width, 1, 1) for width in HEADS["alex"]]
    assert all((p >= 0).all() and p.max() > 0 for p in heads)


def test_what_is_absent_is_named_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("DIORAMA_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(perceptual, "find_spec", lambda _: None)
    with pytest.raises(Unavailable) as caught:
        load_lpips("vgg")
    says = str(caught.value)
    assert "\n" not in says
    for part in ("lpips_vgg", "vgg16-397923af.pth", "vgg.pth", "download.pytorch.org", "lpips/weights/v0.1"):
        assert part in says
    assert str(tmp_path / "lpips") in says and str(tmp_path / "hub" / "checkpoints") in says


@pytest.mark.parametrize("change", ["missing", "unknown", "shape", "broken"])
def test_weights_that_do_not_fit_are_refused_in_one_line(monkeypatch, tmp_path, change):
    monkeypatch.setenv("DIORAMA_CACHE", str(tmp_path))
    (tmp_path / "lpips").mkdir()
    trunk = tmp_path / "lpips/alexnet-owt-7be5be79.safetensors"
    state = trunk_state("alex")
    if change == "missing":
        del state["features.3.bias"]
    elif change == "unknown":
        state["features.12.bias"] = torch.zeros(1)
    elif change == "shape":
        state["features.0.bias"] = torch.zeros(3)
    save_file(state, trunk)
    save_file(head_state("alex"), tmp_path / "lpips/alex.safetensors")
    if change == "broken":
        trunk.write_bytes(b"no weights")
    with pytest.raises(ValueError, match="alexnet-owt") as caught:
        load_lpips("alex")
    assert "\n" not in str(caught.value)


def test_nets_refuse_what_they_cannot_look_at():
    with pytest.raises(ValueError, match="'squeeze': accepted are vgg, alex"):
        LPIPS("squeeze")
    for look in (lambda images: LPIPS("alex")(images, images), Worlds64()):
        with pytest.raises(ValueError, match="31x31: accepted are 32"):
            look(pictures(side=31))
