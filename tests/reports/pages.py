"""A small page of digits under two made-up encoders, with classes of any name."""

import numpy as np
import torch

import datasets
from figures import encoders
from reports import items, maps, measures, outliers, page, pairs

NASTY = "<script>alert(1)</script>"
NAMES = [NASTY, "zero & one", *"23456789"]
ENCODERS = ["pixels", "<b>two</b> </script>"]
ABOUT = page.About(
    "pixels, two: digits", "100 test images", "image", "python report.py", {"python": "3"},
    {"loss": ["none", NASTY]},
    {ENCODERS[0]: [{"epoch": e, "loss": 1 / e, "loss_rank_0": 1.5 / e, "chance_rank_0": 5.0} for e in (1, 2, 3)]},
    [page.Table("Results", ["method", "mAP"], [["one", "1.0 ± 0.1"]], ["A note."])],
)  # fmt: skip


def make_page(count=100, most=60) -> page.Compared:
    """What a page of so many digits shows, made from their pixels and from two of these."""
    data = datasets.build("digits", split="test")
    data = data.select(list(range(count)))
    pixels = torch.tensor(np.array(data.images).reshape(count, -1), dtype=torch.float32)
    features = {ENCODERS[0]: pixels + 1, ENCODERS[1]: pixels[:, [20, 29, 36, 43]] + 1}
    labels = data.labels
    measured = {name: measures.measure(x, labels, 5) for name, x in features.items()}
    shown = items.sample_items(labels.numpy(), most)
    units = [torch.nn.functional.normalize(x[torch.from_numpy(shown)], dim=1).numpy() for x in features.values()]
    groups = [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]
    table = np.where(np.equal.outer(groups, groups), 0.75, 0.0)
    np.fill_diagonal(table, 1)
    wanted = measures.list_needed(shown, [of.nearest for of in measured.values()])
    found = {
        name: outliers.detect(
            None, outliers.Features(x, labels, x, x.flip(1)), outliers.Detector("knn", 3)
        )
        for name, x in features.items()
    }  # fmt: skip
    looks = items.make_thumbnails(data, list(range(count)))
    return page.Compared(
        ABOUT, pairs.Relations(NAMES, groups, ["<i>low</i>", "high"], table), labels.numpy(), shown, 1234, measured,
        {name: encoders.class_cosines(x, labels, 10) for name, x in features.items()},
        maps.make_maps(units, "PCA"), "PCA", items.make_thumbnails(data, wanted),
        page.Outliers("turned <u>digits</u>", "a distance", found, looks, [NAMES[label] for label in labels.tolist()]),
    )  # fmt: skip
