# %% [markdown]
# # CIFAR-10: ten images for fifty thousand
#
# FBPC learns one image a class. A Bayesian ConvNet that sees nothing but these ten is then held against the same
# network given the ten real images that learning started from: accuracy and NLL of the averaged predictions on the
# test images, which a uniform prediction has at 10 % and 2.30.
#
# `python examples/cifar10.py --data-dir DIR --out DIR` is a run for a laptop. `--paper` has the sizes of Kim, Lee and
# Lee (2023): 100 experts of 50 epochs, of a network four times as wide, which want a GPU. A run that was stopped goes
# on when it is started again.

# %%
import argparse
import os
import sys

import jax

from pseudocoreset import Pseudocoreset, compare_posteriors, fit_fbpc, load_dataset, train_experts
from pseudocoreset.diagnostics import plot_coreset, report
from pseudocoreset.inference import sample
from pseudocoreset.models import ConvNet, bnn
from pseudocoreset.proxies import Isotropic

SETTINGS = {
    "laptop": dict(
        network=ConvNet(depth=3, width=32),
        experts=dict(num_experts=2, num_epochs=3, batch_size=128, augment=None),
        # Unit variances in the place of a trajectory's: a step is cheaper.
        fit=dict(steps=100, proxy=Isotropic(), step_size=1000.0, inner_loss=0.1)
        | dict(inner_learning_rate=5e-3, inner_max_steps=200),
        chains=dict(num_chains=2, num_warmup=300, num_samples=10, thinning=50),
    ),
    # What is not said here is the paper's by default: fit_fbpc knows its Table 4.
    "paper": dict(
        network=ConvNet(depth=3, width=128),
        experts=dict(num_experts=100, num_epochs=50),
        fit={},
        chains=dict(num_chains=4, num_warmup=500, num_samples=25, thinning=100),
    ),
    "test": dict(
        network=ConvNet(depth=1, width=2),
        experts=dict(num_experts=1, num_epochs=1, batch_size=16, augment=None),
        fit=dict(steps=2, proxy=Isotropic(), augment=None, inner_max_steps=2),
        chains=dict(num_chains=2, num_warmup=1, num_samples=2),
    ),
}
parser = argparse.ArgumentParser(description="FBPC on CIFAR-10 against random images.")
parser.add_argument("--data-dir", help="tensorflow-datasets folder; its own default if not given")
parser.add_argument("--out", default="cifar10-example", help="folder for all that is written")
parser.add_argument("--images-per-class", type=int, default=1, help="1, 10 or 50 in the paper")
parser.add_argument("--paper", action="store_true", help="the sizes of the paper")
args = parser.parse_args([] if "ipykernel" in sys.modules else None)
chosen = SETTINGS["test" if os.environ.get("PSEUDOCORESET_EXAMPLE_SMALL") else "paper" if args.paper else "laptop"]
expert_key, start_key, fit_key, chain_key = jax.random.split(jax.random.key(0), 4)

# %% The data, and a Bayesian network as a NumPyro program
data = load_dataset("cifar10", data_dir=args.data_dir)
model = bnn(chosen["network"], data)

# %% Experts: networks on their way through the full data
experts = train_experts(model, data, key=expert_key, directory=f"{args.out}/experts", **chosen["experts"])

# %% From real images at random to FBPC
size = args.images_per_class
start = Pseudocoreset.from_data(data, images_per_class=size, key=start_key).with_mass(100.0 * 10 * size)
settings = dict(images_per_class=size, coreset=start, experts=experts, checkpoint_dir=f"{args.out}/fit")
result = fit_fbpc(model, data, key=fit_key, **settings, **chosen["fit"])
result.coreset.save(f"{args.out}/coreset")
plot_coreset(result.coreset, data).savefig(f"{args.out}/coreset.png", dpi=120)

# %% [markdown]
# SGHMC on both: the posterior of ten images, each with the weight of a hundred (`cifar100.py` chooses the weight). The
# papers augment the images at every step when they evaluate, which is another posterior than that of the model, as a
# warning says; here are both. The evaluation of the paper as it describes it:
# `pseudocoreset evaluate cifar10-example/coreset --protocol fbpc2023 --split test --width 32`.

# %%
posteriors = {}
for name, coreset in {"fbpc": result.coreset, "random": start}.items():
    for suffix, augment in (("", None), ("-augmented", "auto")):
        settings = dict(augment=augment, predict_on=data.test, directory=f"{args.out}/posterior-{name}{suffix}")
        posteriors[name + suffix] = sample(model, coreset, key=chain_key, **settings, **chosen["chains"])
comparison = compare_posteriors(posteriors, data.test, reference=None)
print(comparison)
shown = dict(coreset=result.coreset, data=data, history=result.history)
page = report(comparison, f"{args.out}/report.html", title="FBPC on CIFAR-10", **shown)
for name, found in comparison.metrics.items():
    print(f"{name}: accuracy {found.accuracy:.1%}, NLL {found.nll:.2f}")
print(f"Open {page}")
