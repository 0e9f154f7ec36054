"""What every benchmark writes beside its numbers: the machine, and the file that holds both."""

import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch


def write_numbers(out: Path, numbers: dict[str, float], settings: dict[str, Any], device: str, **more: Any) -> None:
    """Numbers, the settings that gave them and the machine, as JSON."""
    machine = {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "torch": metadata.version("torch"),
    }
    if device != "cpu":
        machine["gpu"] = torch.cuda.get_device_name()
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"numbers": numbers, "settings": settings, "machine": machine, **more}, indent=1) + "\n")
