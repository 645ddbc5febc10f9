# %% [markdown]
# # A Bayesian pseudocoreset of handwritten digits
#
# Ten synthetic images, one a digit, stand in for 1,442 real ones. We learn them with FBPC, sample the posterior of a
# small Bayesian ConvNet given the ten and given all, and compare what the two predict.

# %%
import argparse
import os
import sys

import jax

from pseudocoreset import Pseudocoreset, compare_posteriors, fit_fbpc, load_dataset, train_experts
from pseudocoreset.diagnostics import report
from pseudocoreset.inference import sample
from pseudocoreset.models import ConvNet, bnn

# A tenth of the work, for tests.
SMALL = bool(os.environ.get("PSEUDOCORESET_EXAMPLE_SMALL"))
parser = argparse.ArgumentParser(description="FBPC on handwritten digits.")
parser.add_argument("--out", default="digits-example", help="folder for all that is written")
OUT = parser.parse_args([] if "ipykernel" in sys.modules else None).out
expert_key, start_key, fit_key, full_key, coreset_key, random_key = jax.random.split(jax.random.key(0), 6)

# %% The data, and a Bayesian network as a NumPyro program
data = load_dataset("digits")
model = bnn(ConvNet(depth=1, width=2) if SMALL else ConvNet(depth=2, width=32), data)

# %% Expert trajectories on the full data
experts = train_experts(
    model,
    data,
    num_experts=1 if SMALL else 4,
    num_epochs=2 if SMALL else 10,
    learning_rate=0.1,
    batch_size=64,
    key=expert_key,
    directory=f"{OUT}/experts",
)

# %% One image a class, from real images at random to FBPC
start = Pseudocoreset.from_data(data, images_per_class=1, key=start_key, mass="data")
result = fit_fbpc(
    model,
    data,
    coreset=start,
    experts=experts,
    steps=4 if SMALL else 150,
    step_size=100.0,
    inner_learning_rate=0.01,
    key=fit_key,
    checkpoint_dir=f"{OUT}/checkpoints",
)
result.coreset.save(f"{OUT}/coreset")

# %% SGHMC on all three
settings = (
    dict(num_warmup=20, num_samples=5, thinning=2) if SMALL else dict(num_warmup=1000, num_samples=50, thinning=20)
)
posteriors = {
    name: sample(model, source, batch_size=batch, predict_on=data.test, key=key, **settings)
    for name, source, batch, key in (
        ("full", data, 64, full_key),
        ("fbpc", result.coreset, None, coreset_key),
        ("random", start, None, random_key),
    )
}

# %% How well do they agree?
comparison = compare_posteriors(posteriors, data.test)
print(comparison)
report(comparison, f"{OUT}/report.html", coreset=result.coreset, data=data, posteriors=posteriors)
