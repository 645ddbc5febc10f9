"""The kernels that ``sample`` drives, each behind the same three functions.

========================  ===========================================================================
``"nuts"``, ``"hmc"``     BlackJAX, on the exact log density; window adaptation during the warmup
``"network_hmc"``         ``pseudocoreset.inference.hmc``: HMC with long trajectories of a given length, whose
                          change of energy is exact in single precision
``"mclmc"``               BlackJAX's microcanonical Langevin Monte Carlo, on the exact gradient. **Its draws have
                          a bias** that the step size controls: there is no Metropolis step
``"adjusted_mclmc"``      BlackJAX's, with a Metropolis step
``"sghmc"``               ``pseudocoreset.inference.sghmc``: persistent momentum, splitting integrator
``"sgld"``                BlackJAX's stochastic gradient Langevin dynamics (Euler)
``"blackjax_sghmc"``      BlackJAX 1.7.1's SGHMC, for comparison only. **Its draws have the wrong variance**
                          unless friction times trajectory length is large: on N(0, 1) with step 0.05, ten
                          integration steps and friction 1 it is 1.09 times the target's at temperature 1,
                          8.4 times at 0.1 and 81 times at 0.01. Momentum has unit variance at every
                          temperature, and one minibatch serves a whole trajectory.
========================  ===========================================================================
"""

from __future__ import annotations

from collections.abc import Mapping

from pseudocoreset.inference.kernel_spec import Density, KernelSpec, Stats, Tuning
from pseudocoreset.inference.metropolis import HMC, NETWORK_HMC, NUTS
from pseudocoreset.inference.microcanonical import ADJUSTED_MCLMC, MCLMC
from pseudocoreset.inference.stochastic import BLACKJAX_SGHMC, SGHMC, SGLD

__all__ = ["KERNELS", "Density", "KernelSpec", "Stats", "Tuning"]

KERNELS: Mapping[str, KernelSpec] = {
    "nuts": NUTS,
    "hmc": HMC,
    "sghmc": SGHMC,
    "sgld": SGLD,
    "network_hmc": NETWORK_HMC,
    "mclmc": MCLMC,
    "adjusted_mclmc": ADJUSTED_MCLMC,
    "blackjax_sghmc": BLACKJAX_SGHMC,
}
