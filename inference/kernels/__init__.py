"""The kernels that ``sample`` drives, an algorithm a file: options, start, step, adaptation, and what it reports.

========================  ===========================================================================
``"nuts"``, ``"hmc"``     ``NUTS``, ``HMC``: BlackJAX's, on the exact log density; window adaptation in the warmup
``"network_hmc"``         ``NetworkHMC``: long trajectories of a given length, whose change of energy is exact in
                          single precision
``"adjusted_mclmc"``      ``AdjustedMCLMC``: BlackJAX's microcanonical Langevin Monte Carlo with a Metropolis step
``"mclmc"``               ``MCLMC``: without; **its draws have a bias** that the step size controls
``"sghmc"``               ``SGHMC``: persistent momentum, splitting integrator, on minibatches
``"sgld"``                ``SGLD``: BlackJAX's stochastic gradient Langevin dynamics (Euler), on minibatches
``"blackjax_sghmc"``      ``BlackjaxSGHMC``: for comparison only, **its draws have the wrong variance**
========================  ===========================================================================
"""

# In the order in which errors list them.
# isort: off
from pseudocoreset.inference.kernels.registry import KERNELS, register, resolve_kernel
from pseudocoreset.inference.kernels.nuts import NUTS
from pseudocoreset.inference.kernels.hmc import HMC
from pseudocoreset.inference.kernels.sghmc import SGHMC
from pseudocoreset.inference.kernels.sgld import SGLD
from pseudocoreset.inference.kernels.network_hmc import NetworkHMC
from pseudocoreset.inference.kernels.mclmc import MCLMC
from pseudocoreset.inference.kernels.adjusted_mclmc import AdjustedMCLMC
from pseudocoreset.inference.kernels.blackjax_sghmc import BlackjaxSGHMC

# isort: on

__all__ = [
    "HMC",
    "KERNELS",
    "MCLMC",
    "NUTS",
    "SGHMC",
    "SGLD",
    "AdjustedMCLMC",
    "BlackjaxSGHMC",
    "NetworkHMC",
    "register",
    "resolve_kernel",
]
