"""BlackJAX, imported when a kernel is first made: importing it puts an array on the device."""

from __future__ import annotations

from typing import Any

import jax

__all__ = ["load_blackjax"]


def load_blackjax() -> Any:
    """The module ``blackjax``; also safe where JAX is tracing."""
    # It evaluates default arguments with jax.numpy on import; under a trace these would leak.
    with jax.ensure_compile_time_eval():
        import blackjax
        import blackjax.adaptation.mclmc_adaptation
        import blackjax.adaptation.metric_recipes
        import blackjax.adaptation.step_size
        import blackjax.mcmc.adjusted_mclmc_dynamic
    return blackjax
