"""The examples, each run as a user runs it, at a small size."""

import pathlib
import re
import runpy
import sys

import numpy as np
import pytest
from PIL import Image

EXAMPLES = sorted((pathlib.Path(__file__).resolve().parents[1] / "examples").glob("*.py"))
# What they load through tensorflow-datasets: side of an image, classes that occur, training images of each.
STORED = {"cifar10": (32, 10, 3), "cifar100": (32, 100, 2), "tiny_imagenet": (64, 12, 2)}
WRITTEN = {
    "cifar10": {"coreset", "coreset.png", "report.html"},
    "cifar100": {"coreset", "coreset.png", "report.html"},
    "digits": {"coreset", "report.html"},
    "logistic_regression": set(),
    "multi_architecture": {"coreset-first", "coreset-all", "coreset-all.png", "report.html"},
    "posterior_agreement": {"fbpc.png", "forward-kl.png", "comparison.png", "agreement.png", "report.html"},
    "tiny_imagenet": {"coreset", "coreset.png", "report.html"},
}
PRINTED = {
    "cifar10": r"fbpc: accuracy .*\nfbpc-augmented: accuracy .*\nrandom: accuracy",
    "cifar100": r"fbpc: validation NLL by total weight: 100: .*\n(.*\n)*fbpc: accuracy .*\nrandom: accuracy",
    "digits": "Agreement with",
    "logistic_regression": "Agreement with",
    "multi_architecture": r"On MLP, unseen: random .*%, first .*%, all .*%",
    "posterior_agreement": r"two runs of one law: .*\nrandom, m: .*\n(.*\n)*forward-kl, n: total variation",
    "tiny_imagenet": r"the fit needs .* of temporaries(.*\n)*fbpc: accuracy .*\nrandom: accuracy",
}


def prepare(name, data_dir, monkeypatch):
    """A few images of noise in TFDS's form, so that an example finds them as it would find the real ones."""
    from pseudocoreset.data.sources.builders import make_builder

    side, num_classes, images_per_class = STORED[name]
    generator = np.random.default_rng(0)
    builder = make_builder(name, data_dir)

    def examples(split, labels):
        for index, label in enumerate(labels):
            image = Image.fromarray(generator.integers(0, 256, (side, side, 3), np.uint8))
            values = {"id": f"{split}_{index:05d}", "image": image, "label": int(label)}
            values |= {"coarse_label": 0, "file_name": f"{index}.JPEG"}
            yield index, {key: values[key] for key in builder.info.features}

    labels = np.arange(num_classes)
    splits = {"train": np.tile(labels, images_per_class), "test": labels}
    monkeypatch.setattr(
        type(builder), "_split_generators", lambda self, downloads: {s: examples(s, y) for s, y in splits.items()}
    )
    builder.download_and_prepare(file_format="array_record")


# What the examples augment in order to compare with papers is another posterior, as they say.
@pytest.mark.filterwarnings("ignore:augment='.*' changes the posterior")
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(example, tmp_path, monkeypatch, capsys):
    name, text = example.stem, example.read_text()
    assert len(text.splitlines()) < 100
    assert text.startswith("# %% [markdown]\n# # ")
    arguments = ["--out", str(tmp_path)] if "--out" in text else []
    if name in STORED:
        prepare(name, tmp_path / "data", monkeypatch)
        arguments += ["--data-dir", str(tmp_path / "data")]
    monkeypatch.setenv("PSEUDOCORESET_EXAMPLE_SMALL", "1")
    monkeypatch.setattr(sys, "argv", [str(example), *arguments])
    runpy.run_path(str(example), run_name="__main__")
    assert re.search(PRINTED[name], capsys.readouterr().out)
    assert WRITTEN[name] <= {path.name for path in tmp_path.iterdir()}
