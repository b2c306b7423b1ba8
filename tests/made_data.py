"""Small generated data sets in the formats of the real ones."""

import pickle

import numpy as np
from PIL import Image

from datasets import rankings


def make_image_folders(root, classes, each, size=(48, 40)):
    """`each` JPEGs a class: a colour of the class's own under noise."""
    rng = np.random.default_rng(0)
    for name in classes:
        (root / name).mkdir(parents=True, exist_ok=True)
        colour = rng.integers(0, 255, 3)
        for i in range(each):
            pixels = (0.7 * colour + 0.3 * rng.integers(0, 255, (size[1], size[0], 3))).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{name}_{i}.JPEG")


def make_cifar100(root, train, test):
    """CIFAR-100's python files with `train` and `test` random images, all classes in turn."""
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    groups = rankings.known_superclasses("cifar100")
    fine = sorted(c for members in groups.values() for c in members)
    rng = np.random.default_rng(0)
    for name, n in (("train", train), ("test", test)):
        labels = [i % 100 for i in range(n)]
        content = {"data": rng.integers(0, 255, (n, 3072), dtype=np.uint8), "fine_labels": labels}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": fine, "coarse_label_names": sorted(groups)}))
