# %% [markdown]
# # One coreset for several networks
#
# Images that are learned with one network need not suit another. FBPC with several adds up their gradients at every
# step; here ConvNets that differ in how they normalise. The coreset of all is held against that of the first alone and
# against the random images that both started from, on each of the networks and on one that neither has seen.
#
# By default it runs on handwritten digits, on a laptop. `--paper` has the setting of Kim, Lee and Lee (2023): CIFAR-10,
# ten images a class, four norms, a ResNet-18 unseen, which want a GPU. Experts and fits that were stopped go on when it
# is started again.

# %%
import argparse
import os
import sys

import jax

from pseudocoreset import Pseudocoreset, compare_posteriors, evaluate, fit_fbpc, load_dataset, train_experts
from pseudocoreset.diagnostics import plot_coreset, report
from pseudocoreset.models import MLP, ConvNet, ResNet18, bnn
from pseudocoreset.proxies import Isotropic

SETTINGS = {
    "laptop": dict(
        data="digits",
        size=1,
        norms=("instance", "layer", "none"),
        shape=dict(depth=2, width=16),
        unseen=MLP(),
        experts=dict(num_experts=4, num_epochs=10, learning_rate=0.1, batch_size=64),
        fit=dict(steps=100, step_size=10.0, inner_learning_rate=0.01, inner_max_steps=200, proxy=Isotropic()),
        protocol=dict(num_chains=2, num_warmup=500, num_samples=25),
    ),
    "paper": dict(
        data="cifar10",
        size=10,
        norms=("instance", "group", "layer", "batch"),
        shape=dict(depth=3, width=128),
        unseen=ResNet18(),
        experts=dict(num_experts=100, num_epochs=50),
        fit={},
        protocol=dict(num_chains=4, num_warmup=500, num_samples=25, thinning=100),
    ),
    "test": dict(
        data="digits",
        size=1,
        norms=("instance", "none"),
        shape=dict(depth=1, width=4),
        unseen=MLP(widths=(8,)),
        experts=dict(num_experts=1, num_epochs=1, augment=None),
        fit=dict(steps=2, inner_max_steps=2, proxy=Isotropic(), augment=None),
        protocol=dict(num_chains=2, num_warmup=1, num_samples=2, thinning=1),
    ),
}
parser = argparse.ArgumentParser(description="FBPC learned with several networks, given to another.")
parser.add_argument("--data-dir", help="tensorflow-datasets folder; its own default if not given")
parser.add_argument("--out", default="multi-architecture-example", help="folder for all that is written")
parser.add_argument("--paper", action="store_true", help="the setting of the paper")
args = parser.parse_args([] if "ipykernel" in sys.modules else None)
chosen = SETTINGS["test" if os.environ.get("PSEUDOCORESET_EXAMPLE_SMALL") else "paper" if args.paper else "laptop"]
expert_key, start_key, fit_key, score_key = jax.random.split(jax.random.key(0), 4)

# %% The data, a model for each norm, and experts for each model
data = load_dataset(chosen["data"], data_dir=args.data_dir)
models = {f"ConvNet, {norm}": bnn(ConvNet(norm=norm, **chosen["shape"]), data) for norm in chosen["norms"]}
experts = []
for norm, model in zip(chosen["norms"], models.values(), strict=True):
    folder = f"{args.out}/experts-{norm}"
    experts.append(train_experts(model, data, key=expert_key, directory=folder, **chosen["experts"]))

# %% The same random images, learned with the first network and with all
start = Pseudocoreset.from_data(data, images_per_class=chosen["size"], key=start_key, mass="data")
coresets = {"random": start}
for name, count in (("first", 1), ("all", len(models))):
    settings = dict(images_per_class=chosen["size"], coreset=start, checkpoint_dir=f"{args.out}/fit-{name}")
    networks = dict(model=list(models.values())[:count], experts=experts[:count])
    coresets[name] = fit_fbpc(data=data, key=fit_key, **networks, **settings, **chosen["fit"]).coreset
    coresets[name].save(f"{args.out}/coreset-{name}")
    plot_coreset(coresets[name], data).savefig(f"{args.out}/coreset-{name}.png", dpi=120)

# %% The posterior of each network given each coreset
unseen = type(chosen["unseen"]).__name__
models[unseen] = bnn(chosen["unseen"], data)
posteriors = {}
for name, coreset in coresets.items():
    found = evaluate(coreset, models, data, split="test", key=score_key, **chosen["protocol"])
    print(f"{name}: {found}\n")
    posteriors[name] = found[unseen].posterior

# %% The report is that of the network which no coreset was learned with
comparison = compare_posteriors(posteriors, data.test, reference=None)
page = report(comparison, f"{args.out}/report.html", coreset=coresets["all"], data=data, title=f"Given to {unseen}")
print(f"On {unseen}, unseen: " + ", ".join(f"{name} {row.accuracy:.1%}" for name, row in comparison.metrics.items()))
print(f"Open {page}")
