"""Diorama: 3D scenes from a few photos, a camera path and text."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diorama.data.open import open
    from diorama.export.save import save
    from diorama.geometry.cameras import Cameras
    from diorama.pipelines.base import load
    from diorama.scene import Condition, Scene, Shot, Views
    from diorama.viewer.server import view

__version__ = "0.1.0"
__all__ = ["load", "open", "save", "view", "Cameras", "Views", "Condition", "Shot", "Scene"]

_HOMES = {
    "load": "diorama.pipelines.base",
    "open": "diorama.data.open",
    "save": "diorama.export.save",
    "view": "diorama.viewer.server",
    "Cameras": "diorama.geometry.cameras",
    "Views": "diorama.scene",
    "Condition": "diorama.scene",
    "Shot": "diorama.scene",
    "Scene": "diorama.scene",
}


def __getattr__(name: str) -> object:
    """A public name from the module that defines it, imported when it is first asked for (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'diorama' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value  # asked for once, found at once afterwards
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
