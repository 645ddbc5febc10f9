"""What the measurements were taken on, for the record."""

import importlib.metadata
import os
import platform

import jax

__all__ = ["describe_machine"]


def describe_machine() -> dict[str, object]:
    """Processor, cores, device and versions."""
    processor = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
        processor = names[0] if names else processor
    packages = ("pseudocoreset", "jax", "numpyro", "blackjax", "optax", "flax")
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "device": jax.devices()[0].device_kind,
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }
