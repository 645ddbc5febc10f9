# %% [markdown]
# # CIFAR-100: how much weight should a hundred images have?
#
# FBPC learns one image of each of a hundred classes. How sure their posterior is depends on the total weight that they
# are given: a hundred, as in the papers, or the number of images that they stand for, or something between. Accuracy
# hardly shows it, NLL does. Here the weight is chosen on training images that are held back, for the learned images and
# for the random ones that learning started from; the table has a row for the uniform prediction.
#
# `python examples/cifar100.py --data-dir DIR --out DIR` is a run for a laptop. `--paper` has the sizes of Kim, Lee and
# Lee (2023), which want a GPU. Experts, fit and chains that were stopped go on when it is started again.

# %%
import argparse
import os
import sys

import jax

from pseudocoreset import Pseudocoreset, choose_mass, compare_posteriors, fit_fbpc, load_dataset, train_experts
from pseudocoreset.diagnostics import plot_coreset, report
from pseudocoreset.inference import sample
from pseudocoreset.models import ConvNet, bnn
from pseudocoreset.proxies import Isotropic

SETTINGS = {
    "laptop": dict(
        network=ConvNet(depth=3, width=32),
        held_back=0.02,
        experts=dict(num_experts=2, num_epochs=3, batch_size=128, augment=None),
        # Unit variances in the place of a trajectory's: a step is cheaper.
        fit=dict(steps=50, proxy=Isotropic(), first_epoch=1, inner_learning_rate=5e-3, inner_max_steps=100),
        masses=(100, 500, 2500, 12500),
        chains=dict(num_chains=2, num_warmup=200, num_samples=10, thinning=20),
    ),
    # What is not said here is the paper's by default: fit_fbpc knows its Table 4.
    "paper": dict(
        network=ConvNet(depth=3, width=128),
        held_back=0.02,
        experts=dict(num_experts=100, num_epochs=50),
        fit={},
        masses=None,  # five, from the number of the points to that of the data
        chains=dict(num_chains=4, num_warmup=500, num_samples=25, thinning=100),
    ),
    "test": dict(
        network=ConvNet(depth=1, width=2),
        held_back=0.5,
        experts=dict(num_experts=1, num_epochs=1, batch_size=16, augment=None),
        fit=dict(steps=2, proxy=Isotropic(), first_epoch=1, augment=None, inner_max_steps=2),
        masses=(100, 1000),
        chains=dict(num_chains=2, num_warmup=1, num_samples=2),
    ),
}
parser = argparse.ArgumentParser(description="FBPC on CIFAR-100, its weight chosen by validation.")
parser.add_argument("--data-dir", help="tensorflow-datasets folder; its own default if not given")
parser.add_argument("--out", default="cifar100-example", help="folder for all that is written")
parser.add_argument("--images-per-class", type=int, default=1, help="1, 10 or 50 in the paper")
parser.add_argument("--paper", action="store_true", help="the sizes of the paper")
args = parser.parse_args([] if "ipykernel" in sys.modules else None)
chosen = SETTINGS["test" if os.environ.get("PSEUDOCORESET_EXAMPLE_SMALL") else "paper" if args.paper else "laptop"]
split_key, expert_key, start_key, fit_key, mass_key, chain_key = jax.random.split(jax.random.key(0), 6)

# %% The data, some of them held back before anything is learned from them; and the network
data = load_dataset("cifar100", data_dir=args.data_dir).split_validation(chosen["held_back"], split_key)
model = bnn(chosen["network"], data)

# %% From experts and real images at random to FBPC
experts = train_experts(model, data, key=expert_key, directory=f"{args.out}/experts", **chosen["experts"])
size = args.images_per_class
start = Pseudocoreset.from_data(data, images_per_class=size, key=start_key)
settings = dict(images_per_class=size, coreset=start, experts=experts, checkpoint_dir=f"{args.out}/fit")
result = fit_fbpc(model, data, key=fit_key, **settings, **chosen["fit"])

# %% The weight with the best NLL on the validation images, and SGHMC with it
coresets, posteriors = {}, {}
for name, coreset in {"fbpc": result.coreset, "random": start}.items():
    settings = dict(masses=chosen["masses"], key=mass_key)
    coresets[name] = choose_mass(model, coreset, data.validation, **settings, **chosen["chains"])
    tried = coresets[name].metadata["mass_choice"]
    listed = ", ".join(f"{mass:,.0f}: {nll:.2f}" for mass, nll in zip(tried["mass"], tried["nll"], strict=True))
    print(f"{name}: validation NLL by total weight: {listed}")
    settings = dict(key=chain_key, predict_on=data.test, directory=f"{args.out}/posterior-{name}")
    posteriors[name] = sample(model, coresets[name], **settings, **chosen["chains"])
coresets["fbpc"].save(f"{args.out}/coreset")
plot_coreset(coresets["fbpc"], data).savefig(f"{args.out}/coreset.png", dpi=120)

# %% What they predict on the test images
comparison = compare_posteriors(posteriors, data.test, reference=None)
print(comparison)
shown = dict(coreset=coresets["fbpc"], data=data, history=result.history)
page = report(comparison, f"{args.out}/report.html", title="FBPC on CIFAR-100", **shown)
for name, found in comparison.metrics.items():
    print(f"{name}: accuracy {found.accuracy:.1%}, NLL {found.nll:.2f}")
print(f"Open {page}")
