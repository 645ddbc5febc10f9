# %% [markdown]
# # Tiny-ImageNet: memory known beforehand
#
# Images of 64 x 64 and a network of four blocks. What a fit will need is estimated before it starts, and a step takes
# no more than a hundred points of the coreset, as in the paper. FBPC learns one image a class, and the posterior of
# these is held against that of the real images that learning started from.
#
# `python examples/tiny_imagenet.py --data-dir DIR --out DIR` is a run for a laptop, with the first 20 of the 200
# classes. `--paper` has all, and the sizes of Kim, Lee and Lee (2023), which want a GPU. A run that was stopped goes on
# when it is started again.

# %%
import argparse
import dataclasses
import os
import sys

import jax

from pseudocoreset import Pseudocoreset, compare_posteriors, estimate_memory, fit_fbpc, load_dataset, train_experts
from pseudocoreset.diagnostics import plot_coreset, report
from pseudocoreset.inference import sample
from pseudocoreset.models import ConvNet, bnn
from pseudocoreset.proxies import Isotropic

SETTINGS = {
    "laptop": dict(
        num_classes=20,
        network=ConvNet(depth=4, width=32),
        experts=dict(num_experts=2, num_epochs=10, batch_size=64, augment=None),
        # Unit variances in the place of a trajectory's: a step is cheaper.
        fit=dict(steps=40, proxy=Isotropic(), first_epoch=1, inner_learning_rate=5e-3, inner_max_steps=100),
        chains=dict(num_chains=2, num_warmup=200, num_samples=10, thinning=50),
    ),
    # What is not said here is the paper's by default: fit_fbpc knows its Table 4.
    "paper": dict(
        num_classes=200,
        network=ConvNet(depth=4, width=128),
        experts=dict(num_experts=100, num_epochs=50),
        fit={},
        chains=dict(num_chains=4, num_warmup=500, num_samples=25, thinning=100),
    ),
    "test": dict(
        num_classes=10,
        network=ConvNet(depth=1, width=2),
        experts=dict(num_experts=1, num_epochs=1, batch_size=16, augment=None),
        fit=dict(steps=2, proxy=Isotropic(), first_epoch=1, augment=None, inner_max_steps=2),
        chains=dict(num_chains=2, num_warmup=1, num_samples=2),
    ),
}
parser = argparse.ArgumentParser(description="FBPC on Tiny-ImageNet against random images.")
parser.add_argument("--data-dir", help="tensorflow-datasets folder; its own default if not given")
parser.add_argument("--out", default="tiny-imagenet-example", help="folder for all that is written")
parser.add_argument("--images-per-class", type=int, default=1, help="1, 10 or 50 in the paper")
parser.add_argument("--paper", action="store_true", help="all classes, and the sizes of the paper")
args = parser.parse_args([] if "ipykernel" in sys.modules else None)
chosen = SETTINGS["test" if os.environ.get("PSEUDOCORESET_EXAMPLE_SMALL") else "paper" if args.paper else "laptop"]
expert_key, start_key, fit_key, chain_key = jax.random.split(jax.random.key(0), 4)

# %% The data of some of the classes, and a network a block deeper than that of the smaller images
count = chosen["num_classes"]
data = load_dataset("tiny_imagenet", data_dir=args.data_dir)
splits = {name: split.subset(split.y < count) for name, split in (("train", data.train), ("test", data.test))}
data = dataclasses.replace(data, num_classes=count, class_names=data.class_names[:count], **splits)
model = bnn(chosen["network"], data)

# %% What will a fit need, by the compiler's account?
size = args.images_per_class
start = Pseudocoreset.from_data(data, images_per_class=size, key=start_key).with_mass(100.0 * count * size)
settings = dict(images_per_class=size, coreset=start, **chosen["fit"])
print(f"the fit needs {estimate_memory(model, data, 'fbpc', **settings)}")

# %% Experts, and from real images at random to FBPC
experts = train_experts(model, data, key=expert_key, directory=f"{args.out}/experts", **chosen["experts"])
result = fit_fbpc(model, data, key=fit_key, experts=experts, checkpoint_dir=f"{args.out}/fit", **settings)
result.coreset.save(f"{args.out}/coreset")
plot_coreset(result.coreset, data).savefig(f"{args.out}/coreset.png", dpi=120)

# %% SGHMC on both: the posterior of these images, each with the weight of a hundred
posteriors = {}
for name, coreset in {"fbpc": result.coreset, "random": start}.items():
    settings = dict(key=chain_key, predict_on=data.test, directory=f"{args.out}/posterior-{name}")
    posteriors[name] = sample(model, coreset, **settings, **chosen["chains"])
comparison = compare_posteriors(posteriors, data.test, reference=None)
print(comparison)
shown = dict(coreset=result.coreset, data=data, history=result.history)
page = report(comparison, f"{args.out}/report.html", title="FBPC on Tiny-ImageNet", **shown)
for name, found in comparison.metrics.items():
    print(f"{name}: accuracy {found.accuracy:.1%}, NLL {found.nll:.2f}")
print(f"Open {page}")
