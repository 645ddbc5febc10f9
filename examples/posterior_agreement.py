# %% [markdown]
# # How close is the posterior of a coreset to that of all the data?
#
# A network so small that NUTS can sample its posterior given all the data: this is the reference. By the same program
# and kernel, the posteriors of ten images: random ones, and learned by FBPC and by forward KL; each twice, with weights
# that sum to their number (m, as the papers on networks have it) and to that of all data (n, the scale of the
# reference). The distance between two halves of the reference is what a perfect coreset would have.
#
# By default it runs on handwritten digits, on a laptop. No paper has this comparison: `--paper` is the same on MNIST,
# with longer chains, and wants a GPU. A run that was stopped goes on when it is started again.

# %%
import argparse
import os
import sys

import jax

from pseudocoreset import Pseudocoreset, compare_posteriors, fit_bpc_fkl, fit_fbpc, load_dataset, train_experts
from pseudocoreset.diagnostics import plot_agreement, plot_coreset, report
from pseudocoreset.inference import sample
from pseudocoreset.models import MLP, bnn
from pseudocoreset.proxies import Trajectory

SETTINGS = {
    "laptop": dict(
        data="digits",
        width=32,
        experts=dict(num_experts=8, num_epochs=10, learning_rate=0.05, batch_size=64),
        steps=(200, 60),  # of FBPC and of forward KL
        full=dict(num_chains=2, num_warmup=200, num_samples=200, max_num_doublings=6),
        coreset=dict(num_chains=2, num_warmup=200, num_samples=200, max_num_doublings=6),
    ),
    "paper": dict(
        data="mnist",
        width=32,
        experts=dict(num_experts=8, num_epochs=10, learning_rate=0.05, batch_size=128),
        steps=(1000, 500),
        full=dict(num_chains=4, num_warmup=500, num_samples=500, max_num_doublings=8),
        coreset=dict(num_chains=4, num_warmup=500, num_samples=500, max_num_doublings=8),
    ),
    "test": dict(
        data="digits",
        width=4,
        experts=dict(num_experts=2, num_epochs=1, learning_rate=0.05),
        steps=(2, 2),
        full=dict(num_chains=2, num_warmup=40, num_samples=2, max_num_doublings=3),
        coreset=dict(num_chains=2, num_warmup=40, num_samples=2, max_num_doublings=3),
    ),
}
parser = argparse.ArgumentParser(description="Posteriors of coresets against NUTS on all data.")
parser.add_argument("--data-dir", help="tensorflow-datasets folder; its own default if not given")
parser.add_argument("--out", default="posterior-agreement-example", help="folder for all that is written")
parser.add_argument("--paper", action="store_true", help="MNIST and longer chains")
args = parser.parse_args([] if "ipykernel" in sys.modules else None)
chosen = SETTINGS["test" if os.environ.get("PSEUDOCORESET_EXAMPLE_SMALL") else "paper" if args.paper else "laptop"]
expert_key, full_key, start_key, fbpc_key, kl_key, chain_key = jax.random.split(jax.random.key(0), 6)

# %% The data, the model, its experts, and the reference: chains that start where experts ended
data = load_dataset(chosen["data"], data_dir=args.data_dir)
model = bnn(MLP(widths=(chosen["width"],)), data)
folder = f"{args.out}/experts"
experts = train_experts(model, data, key=expert_key, augment=None, directory=folder, **chosen["experts"])
starts = experts.stack([(chain, experts.num_epochs) for chain in range(chosen["full"]["num_chains"])])
settings = dict(kernel="nuts", predict_on=data.test, init_params=starts, directory=f"{args.out}/posterior-full")
posteriors = {"full": sample(model, data, key=full_key, **settings, **chosen["full"])}

# %% Three coresets of one image a class
start = Pseudocoreset.from_data(data, images_per_class=1, key=start_key)
shared = dict(images_per_class=1, coreset=start, experts=experts, augment=None)
fbpc = dict(step_size=1.0, inner_loss=0.1, inner_learning_rate=0.01, proxy=Trajectory(num_steps=10, batch_size=64))
fbpc |= dict(steps=chosen["steps"][0], checkpoint_dir=f"{args.out}/fit-fbpc")
kl = dict(step_size=30.0, num_draws=5, num_inner_steps=20, inner_learning_rate=0.05)
kl |= dict(steps=chosen["steps"][1], checkpoint_dir=f"{args.out}/fit-forward-kl")
coresets = {
    "random": start,
    "fbpc": fit_fbpc(model, data, key=fbpc_key, **fbpc, **shared).coreset,
    "forward-kl": fit_bpc_fkl(model, data, key=kl_key, **kl, **shared).coreset,
}

# %% The posterior of each at either mass
for name, coreset in coresets.items():
    plot_coreset(coreset, data).savefig(f"{args.out}/{name}.png", dpi=120)
    for mass, total in (("ones", "m"), ("data", "n")):
        settings = dict(kernel="nuts", predict_on=data.test, directory=f"{args.out}/posterior-{name}-{total}")
        weighted = coreset.with_mass(mass)
        posteriors[f"{name}, {total}"] = sample(model, weighted, key=chain_key, **settings, **chosen["coreset"])

# %% How far from the reference?
comparison = compare_posteriors(posteriors, data.test)
print(comparison)
comparison.plot().savefig(f"{args.out}/comparison.png", dpi=120)
plot_agreement(comparison).savefig(f"{args.out}/agreement.png", dpi=120)
page = report(comparison, f"{args.out}/report.html", coreset=coresets["forward-kl"], data=data)
print(f"two runs of one law: total variation below {comparison.noise_floor.total_variation:.3f}")
for name in list(posteriors)[1:]:
    print(f"{name}: total variation {comparison.agreement[name].total_variation:.3f} from the reference")
print(f"Open {page}")
