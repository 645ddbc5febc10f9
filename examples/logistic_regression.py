# %% [markdown]
# # A coreset for your own NumPyro program
#
# A hierarchical logistic regression with a random intercept a group, written as any NumPyro program is. The coreset
# needs nothing else: 40 synthetic points for 1,442 handwritten digits, then NUTS on both.

# %%
import os

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist

from pseudocoreset import Dataset, Pseudocoreset, compare_posteriors, fit_bpc_rkl, load_dataset
from pseudocoreset.inference import sample
from pseudocoreset.models import Model

SMALL = bool(os.environ.get("PSEUDOCORESET_EXAMPLE_SMALL"))

# %% [markdown]
# The data: is a digit even? Twenty principal components of its pixels, and its group, the decile of its ink, as the
# last column. A column that the program reads as an integer has no gradient, so the coreset keeps the groups that it
# starts with.

# %%
NUM_GROUPS, NUM_FEATURES = 10, 20
digits = load_dataset("digits")
pixels = digits.train.x.reshape(len(digits.train), -1)
mean = pixels.mean(0)
_, scales, axes = np.linalg.svd(pixels - mean, full_matrices=False)
edges = np.quantile(pixels.sum(1), np.linspace(0, 1, NUM_GROUPS + 1)[1:-1])


def features(x):
    flat = x.reshape(len(x), -1)
    whitened = (flat - mean) @ axes[:NUM_FEATURES].T / scales[:NUM_FEATURES] * np.sqrt(len(pixels))
    return np.c_[whitened, np.digitize(flat.sum(1), edges)].astype(np.float32)


data = Dataset.from_arrays(
    features(digits.train.x),
    1 - digits.train.y % 2,
    test=(features(digits.test.x), 1 - digits.test.y % 2),
    class_names=("odd", "even"),
    name="even_digits",
)


# %%
def program(x, y=None):
    group = x[:, NUM_FEATURES].astype(int)
    spread = numpyro.sample("spread", dist.HalfNormal(1.0))
    effects = numpyro.sample("effects", dist.Normal(0.0, 1.0).expand((NUM_GROUPS,)).to_event(1))
    coefficients = numpyro.sample("coefficients", dist.Normal(0.0, 1.0).expand((NUM_FEATURES,)).to_event(1))
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 1.0))
    f = numpyro.deterministic("f", x[:, :NUM_FEATURES] @ coefficients + intercept + spread * effects[group])
    with numpyro.plate("data", len(x)):
        numpyro.sample("y", dist.Bernoulli(logits=f), obs=y)


model = Model.from_numpyro(program)

# %% [markdown]
# Forty points under reverse KL, inputs, labels and weights learned.

# %%
result = fit_bpc_rkl(
    model,
    data,
    images_per_class=20,
    targets="learned",
    steps=20 if SMALL else 1000,
    key=jax.random.key(0),
)
random = Pseudocoreset.from_data(data, images_per_class=20, mass="data", key=jax.random.key(0))
print(result)

# %% [markdown]
# NUTS on all three, and how far the two coresets are from the whole data.

# %%
settings = dict(
    kernel="nuts",
    num_chains=2,
    num_warmup=200 if SMALL else 500,
    num_samples=20 if SMALL else 500,
    predict_on=data.test,
)
posteriors = {
    name: sample(model, source, key=jax.random.key(1), **settings)
    for name, source in {"coreset": result.coreset, "random": random, "full": data}.items()
}
print(compare_posteriors(posteriors, data.test))
