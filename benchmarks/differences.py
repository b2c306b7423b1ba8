"""The sizes of the differences that docs/differences.md names, each of ours beside the published way in the same run.

python -m benchmarks.differences [--views 400] [--json FILE]

Views: crops and colour with the same parameters, by torchvision on PIL images as published, and by ours. Evaluation:
both areas under the precision-recall curve, both FPR95, and the linear probe with and without a warm-up, on features
made of Gaussian clusters.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms import functional as pil

import evaluation
from benchmarks import report
from datasets.augmentation import DRAWS, ORDERS, Augmentation, crop, finish
from engine.optimisation import Schedule

NOISE = 6.0  # of the features that are probed
NAMES = ("brightness", "contrast", "saturation", "hue")


def published_view(image: Image.Image, box, row, size: int, colour: bool) -> np.ndarray:
    """[size, size, 3] uint8 of one view by torchvision's functions of PIL images."""
    flip, jitter, *factors, order, grey = row.tolist()
    image = pil.resized_crop(image, *box, [size, size])
    if colour:
        image = pil.hflip(image) if flip else image
        for i in ORDERS[int(order)] if jitter else ():
            image = getattr(pil, f"adjust_{NAMES[i]}")(image, factors[i])
        image = pil.to_grayscale(image, 3) if grey else image
    return np.asarray(image)


def views(count: int, size: int, side: int, colour: bool) -> torch.Tensor:
    """[n] differences of pixels, in units of 1/255, between both ways of `count` views of photographs of that side."""
    from sklearn.datasets import load_sample_images

    photographs = [Image.fromarray(x) for x in load_sample_images().images]
    recipe, rng, found = Augmentation(size, (0.0,) * 3, (1.0,) * 3), np.random.default_rng(0), []
    for n in range(count):
        left, top = rng.integers(0, 640 - side + 1), rng.integers(0, 427 - side + 1)
        image = photographs[n % 2].crop((left, top, left + side, top + side))
        uniform = rng.random((1, DRAWS))
        box, look = recipe.box(uniform[0], side, side), recipe.look(uniform)
        cut = torch.empty(1, 3, size, size, dtype=torch.uint8)
        crop(torch.from_numpy(np.array(image)), box, cut)
        ours = 255 * finish(cut, look, recipe.mean, recipe.std) if colour else cut.float()
        theirs = torch.from_numpy(published_view(image, box, look[0], size, colour).copy()).permute(2, 0, 1)
        found.append((ours[0] - theirs).abs().flatten())
    return torch.cat(found)


def clusters(classes: int, each: int, dim: int, noise: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features [n, dim] in Gaussian clusters, five to a superclass, and their classes [n]."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(classes, dim, generator=torch.Generator().manual_seed(0))
    means += torch.randn(-(-classes // 5), dim, generator=torch.Generator().manual_seed(1)).repeat_interleave(5, 0)[
        :classes
    ]
    labels = torch.arange(classes).repeat_interleave(each)
    return means[labels] + noise * torch.randn(len(labels), dim, generator=generator), labels


def areas(each: int) -> list[dict]:
    """AP and AP-published of 100 classes, and of their 20 superclasses, with `each` images a class in the gallery."""
    gallery, known = clusters(100, each, 64, 2.0, seed=2)
    queries, labels = clusters(100, 2, 64, 2.0, seed=3)
    rows = []
    for name, group in (("fine", 1), ("coarse", 5)):
        found = evaluation.retrieval_metrics(queries, labels // group, gallery, known // group)
        what = f"AP, {name}, {len(gallery):,} in the gallery, points"
        rows.append(row(what, 100 * found["AP-published"], 100 * found["AP"]))
    return rows


def fpr95() -> dict:
    """Inliers N(0, 1) against outliers N(-2, 0.5)."""
    grid = (torch.arange(100_000) + 0.5) / 100_000
    normal = torch.distributions.Normal(0.0, 1.0).icdf(grid)
    found = evaluation.ood_metrics(normal, -2 + 0.5 * normal)
    return row(
        "FPR95 of N(0, 1) against N(-2, 0.5), outliers positive | inliers positive, %",
        100 * found["FPR95-out"],
        100 * found["FPR95"],
    )


def probe(warm_epochs: int, seed: int) -> tuple[float, float]:
    """Best and last test accuracy in percent of a probe of 100 epochs, batch 512, rate 5, steps at 60, 75 and 90."""
    features, labels = clusters(100, 50, 512, NOISE, seed=10 + seed)
    test, truth = clusters(100, 20, 512, NOISE, seed=20 + seed)
    generator = torch.Generator().manual_seed(seed)
    features, test = F.relu(features) / 10, F.relu(test) / 10  # as after a ReLU
    torch.manual_seed(seed)
    layer = torch.nn.Linear(512, 100)
    schedule = Schedule(5.0, 100, False, 0.2, (60, 75, 90), warm_epochs)
    optimizer = torch.optim.SGD(layer.parameters(), 5.0, momentum=0.9)
    steps, accuracies = len(features) // 512, []
    for epoch in range(100):
        order = torch.randperm(len(features), generator=generator)
        for i in range(steps):
            optimizer.param_groups[0]["lr"] = schedule.rate(epoch + i / steps)
            chosen = order[512 * i : 512 * (i + 1)]
            loss = F.cross_entropy(layer(features[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            accuracies.append(100 * float((layer(test).argmax(1) == truth).float().mean()))
    return max(accuracies), accuracies[-1]


def row(what: str, published: float, ours: float) -> dict:
    return {"figure": what, "published": published, "ours": ours, "difference": ours - published}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, default=400)
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    args = parser.parse_args()
    rows = []
    for size, side in ((32, 32), (224, 375)):
        for colour in (False, True):
            found = views(args.views, size, side, colour)
            name = f"pixels of {size} px views, {'colour too' if colour else 'crop alone'}, in 1/255"
            rows.append({"figure": name, "mean": float(found.mean()), "most": float(found.max())})
    report("ours minus published", rows, args.json, name="differences_of_views")
    rows = [*areas(500), *areas(20), fpr95()]
    probes = {warm: [probe(warm, seed) for seed in range(4)] for warm in (0, 10)}
    for i, name in enumerate(("best", "last")):
        plain, warm = (float(np.mean([p[i] for p in probes[w]])) for w in (0, 10))
        rows.append(row(f"probe, {name} epoch, without | with a warm-up of 10 epochs, 4 seeds, %", plain, warm))
    report("published way beside another", rows, args.json)


if __name__ == "__main__":
    main()
