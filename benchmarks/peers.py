"""Compare our times with those of other packages and of plain forms, on equal inputs.

python -m benchmarks.peers [--only NAME ...] [--rounds 5] [--threads N] [--json FILE]

Peers: pytorch-metric-learning, lightly, faiss, albumentations (which is cv2), scikit-learn, torchvision:
`pip install ".[bench]"`. SupContrast and the published code are no packages: their plain forms are written from the
papers. Results are compared before anything is timed, and an unequal one ends the run. The forms of a table run in
turn; `times ours` is the median, over the rounds, of a form's time over that of ours in the same round.
"""

import copy
import importlib.util
import io
import os
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import util  # first: where packages are missing it says what to do

# isort: split
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

import datasets
from benchmarks import ROUNDS, data, in_turn, must_equal, parser, ratio, report
from benchmarks.data import JITTER, MEAN, STD, build_published_view, by_batch, one_by_one
from benchmarks.evaluation import make_features, rank_alone, score_by_scikit_learn
from benchmarks.loss import TAU, forward_and_backward, make_inputs, make_table, plain_infonce
from benchmarks.train_step import Case, Training, build_plain_steps
from datasets import decoding
from evaluation import Curve, gaussian_scores, knn_scores, look_up, retrieval_metrics
from losses import InBatchLoss, NestedRINCELoss, RINCELoss, SupConLoss

# module -> the package that pip knows
PACKAGES = {
    "pytorch_metric_learning": "pytorch-metric-learning", "lightly": "lightly", "faiss": "faiss-cpu",
    "albumentations": "albumentations",
}  # fmt: skip


class Work(NamedTuple):
    """What is measured in several forms, the first of which is ours: name -> what computes it. images: that one call
    makes, where these are counted; threads: None: as the command says; keep: what the forms need to live.
    """

    title: str
    forms: dict[str, Callable[[], object]]
    images: int | None = None
    threads: int | None = None
    keep: object = None


# ---- losses ----------------------------------------------------------------------------------------------------------


def over_a_bank() -> Work:
    """RINCE over a bank, next to one-term InfoNCE and the packages' banks."""
    from lightly.loss import NTXentLoss
    from pytorch_metric_learning.losses import SupConLoss

    q, k, labels, bank, bank_labels = given = make_inputs()
    ranked, cold = RINCELoss(make_table()), RINCELoss(make_table(), 0.03)
    nested = NestedRINCELoss(torch.stack([torch.arange(100), torch.arange(100) // 5], 1))
    moco = NTXentLoss(TAU, memory_bank_size=tuple(bank.shape))
    moco.memory_bank.bank = bank.clone()
    with_classes = fill_bank(bank, bank_labels)
    with torch.no_grad():
        must_equal("ranks from nested groups", nested(*given), ranked(*given), 1e-4)
        must_equal("lightly's NTXentLoss", moco(q.detach(), k), plain_infonce(*given), 1e-4)
        wanted = supcontrast(q @ bank.T, labels[:, None] == bank_labels)
        must_equal("SupConLoss", SupConLoss(TAU)(q, labels, ref_emb=bank, ref_labels=bank_labels), wanted, 1e-4)
    forms = {
        "RINCE out-in, two ranks": lambda: ranked.terms(*given).loss(),
        "the same at temperature 0.03, through infonce": lambda: cold.terms(*given).loss(),
        "the same, ranks from nested groups": lambda: nested.terms(*given).loss(),
        "plain InfoNCE, one term, autograd": lambda: plain_infonce(*given),
        "lightly: NTXentLoss with a bank, no labels": lambda: moco(q, k),
        "pytorch-metric-learning: CrossBatchMemory(SupConLoss)": lambda: with_classes(q, k, labels),
    }
    forms = {name: forward_and_backward(loss, q) for name, loss in forms.items()}
    forms["two products of the same size"] = lambda: (q.detach() @ bank.T) @ bank
    return Work(f"loss over a bank, N {len(q)}, K {len(bank):,}, D {q.shape[1]}, forward and backward", forms)


def fill_bank(bank: Tensor, bank_labels: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """pytorch-metric-learning's SupCon over its own bank, full of ours: query, key, labels -> loss; keys go into it."""
    from pytorch_metric_learning.losses import CrossBatchMemory, SupConLoss

    memory = CrossBatchMemory(SupConLoss(TAU), bank.shape[1], len(bank))
    memory.add_to_memory(bank, bank_labels, len(bank))

    def loss(q, k, labels):
        is_key = torch.arange(2 * len(q)) >= len(q)
        return memory(torch.cat([q, k]), torch.cat([labels, labels]), enqueue_mask=is_key)

    return loss


def supcontrast(similarity: Tensor, positive: Tensor, candidate: Tensor | None = None) -> Tensor:
    """L_out of Khosla et al. (2020, eq. 2) from its formula: [N, K] cosines, which are positives, which are candidates
    (None: all). The denominator holds all candidates, other positives too, unlike ours.
    """
    logits = similarity / TAU
    candidates = logits if candidate is None else logits.masked_fill(~candidate, -torch.inf)
    log_p = logits - candidates.logsumexp(1, keepdim=True)
    number = positive.sum(1)
    return -((log_p * positive).sum(1) / number.clamp(min=1))[number > 0].mean()


def in_the_batch() -> Work:
    """Two views of each of 768 images as anchors and candidates alike."""
    from pytorch_metric_learning.losses import SupConLoss as OfPackage

    x, _, labels, *_ = make_inputs(keys=1, anchors=1536)
    labels, q = labels[:768].repeat(2), x.detach().requires_grad_()
    ours, of_package = InBatchLoss(SupConLoss(100, TAU)), OfPackage(TAU)
    same, others = labels[:, None] == labels, ~torch.eye(len(q), dtype=torch.bool)

    def as_ours():
        """-log(e_j / (e_j + S(N))) per pair, whose denominator has no other positives."""
        logits = q @ q.T / TAU
        log_n = logits.masked_fill(same, -torch.inf).logsumexp(1, keepdim=True)
        return F.softplus(log_n - logits)[same & others].mean()

    forms = {
        "InBatchLoss(SupConLoss), one rank": lambda: ours.terms(q, None, labels).loss(),
        "SupContrast, plain, autograd": lambda: supcontrast(q @ q.T, same & others, others),
        "ours, plain, autograd": as_ours,
        "pytorch-metric-learning: SupConLoss": lambda: of_package(q, labels),
    }
    with torch.no_grad():
        own, theirs, own_plain, of_package_too = (loss() for loss in forms.values())
        must_equal("pytorch-metric-learning's SupConLoss", of_package_too, theirs, 1e-4)
        must_equal("ours", own, own_plain, 1e-4)
    forms = {name: forward_and_backward(loss, q) for name, loss in forms.items()}
    return Work("in the batch, 768 x 2 views, D 128, forward and backward", forms)


# ---- evaluation ------------------------------------------------------------------------------------------------------


def retrieval() -> Work:
    """Make the work of the whole precision-recall curve."""
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    (q, labels), (gallery, known) = make_features((1000, 50_000), 512)
    calculator = AccuracyCalculator(include=("mean_average_precision_at_r",), k="max_bin_count")

    def map_at_r(few=slice(None)):
        found = calculator.get_accuracy(q[few].numpy(), labels[few].numpy(), gallery.numpy(), known.numpy())
        return found["mean_average_precision_at_r"]

    few = slice(0, 100)
    ours = retrieval_metrics(q[few], labels[few], gallery, known)["MAP@R"]
    must_equal("MAP@R of pytorch-metric-learning", map_at_r(few), ours, 1e-5)
    forms = {
        "whole curve, all metrics": lambda: look_up(q, gallery, [Curve(labels, known)]),
        "product and the same sort alone": lambda: rank_alone(q, gallery),
        "pytorch-metric-learning: MAP@R alone": map_at_r,
    }
    return Work("retrieval, 1,000 queries in 50,000 x 512", forms)


def nearest() -> Work:
    """Make the work of the distance to the 50th nearest training feature."""
    import faiss
    from sklearn.neighbors import NearestNeighbors

    (train, _), (test, _) = make_features((12_600, 8000), 512, classes=10)
    faiss.omp_set_num_threads(torch.get_num_threads())

    def by_faiss():
        index = faiss.IndexFlatL2(512)
        index.add(train.numpy())
        squares, _ = index.search(test.numpy(), 50)
        return -torch.from_numpy(squares[:, -1]).clamp(min=0).sqrt()

    def by_scikit_learn():
        search = NearestNeighbors(n_neighbors=50, algorithm="brute").fit(train.numpy())
        return -torch.from_numpy(search.kneighbors(test.numpy())[0][:, -1])

    for name, scores in (("faiss", by_faiss()), ("scikit-learn", by_scikit_learn())):
        must_equal(name, scores, knn_scores(train, test, 50), 1e-4)
    forms = {
        "kNN scores": lambda: knn_scores(train, test, 50),
        "faiss-cpu: IndexFlatL2": by_faiss,
        "scikit-learn: NearestNeighbors, brute": by_scikit_learn,
        "the product alone": lambda: [part @ train.T for part in test.split(512)],
    }
    return Work("kNN, 8,000 images, 12,600 x 512 training features, k 50", forms)


def gaussian() -> Work:
    """Make the work of a full-covariance Gaussian per class."""
    (train, labels), (test, _) = make_features((12_600, 8000), 512, classes=10)
    parts, doubles = [train[labels == c].double() for c in range(10)], test.double()
    square = torch.randn(512, 512, dtype=torch.float64)
    forms = {
        "Gaussian scores, float64": lambda: gaussian_scores(train, labels, test),
        "scikit-learn: GaussianMixture(1) a class, float64": lambda: score_by_scikit_learn(train, labels, test),
        "scikit-learn: the same in float32": lambda: score_by_scikit_learn(train, labels, test, np.float32),
        "the full products alone, float64": lambda: [(part.T @ part, doubles @ square) for part in parts],
    }
    ours, by_scikit_learn, *_ = forms.values()
    must_equal("scikit-learn's GaussianMixture", by_scikit_learn(), ours(), 1e-6)
    return Work("Gaussian scores, 8,000 images, 10 classes of 1,260 x 512", forms)


# ---- images ----------------------------------------------------------------------------------------------------------


def views_by_peers(read: Callable, pixels: Callable, count: int, size: int) -> dict[str, Callable]:
    """Forms of the packages over images that `read` gives as PIL's and `pixels` as arrays; each returns its views.

    All draw crop, flip, jitter and gray as published, each by its own random numbers: only mean and spread of their
    views are compared. Over a hundred images, means of normalized pixels differ by 0.05 or so.
    """
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else it asks the network for a newer version
    import albumentations
    import cv2

    cv2.setNumThreads(0)
    by_cv2 = albumentations.Compose(
        [
            albumentations.RandomResizedCrop(size=(size, size), scale=(0.2, 1.0)),
            albumentations.HorizontalFlip(p=0.5),
            albumentations.ColorJitter(*JITTER, p=0.8),
            albumentations.ToGray(p=0.2),
            albumentations.Normalize(MEAN, STD),
        ]
    )

    def pairs(image, view):
        return lambda: torch.stack([torch.stack([view(x), view(x)]) for x in map(image, range(count))])

    def as_tensor(x):
        return torch.from_numpy(x).permute(2, 0, 1)

    forms = {
        "published: PIL, torchvision's transforms": pairs(read, build_published_view(size)),
        "torchvision v2, tensors": pairs(lambda i: as_tensor(pixels(i)), build_published_view(size, v2)),
        "albumentations (cv2)": pairs(pixels, lambda x: as_tensor(by_cv2(image=x)["image"])),
    }
    util.seed_everything(0)
    found = {name: torch.stack(torch.std_mean(run().float())) for name, run in forms.items()}
    for name, spread_and_mean in found.items():
        must_equal(f"{name}: spread and mean", spread_and_mean, next(iter(found.values())), 0.25)
    return forms


def photographs() -> Work:
    """JPEGs of 500 x 375 to 224 pixels, on one core."""
    import cv2

    scratch = tempfile.TemporaryDirectory()
    root = Path(scratch.name, "photographs")
    data.make_photographs(root, 100)
    images = datasets.build("path", root)
    raw, jpeg = (data.pack(images, root, Path(scratch.name), form) for form in ("raw", "jpeg"))
    peers = views_by_peers(
        lambda i: Image.open(images.images[i]).convert("RGB"),
        lambda i: cv2.cvtColor(cv2.imread(images.images[i]), cv2.COLOR_BGR2RGB),
        len(images), 224,
    )  # fmt: skip
    forms = {
        "JPEG folder, everything on the CPU": by_batch(images, 224, 64, finished=True),
        "JPEG folder, color on the device (the worker's part)": by_batch(images, 224, 64, finished=False),
        "packed JPEG 256, color on the device": by_batch(jpeg, 224, 64, finished=False),
        "packed raw 256, color on the device": by_batch(raw, 224, 100, finished=False),
    }
    return Work("JPEGs of 500 x 375 to two views of 224, one core", forms | peers, len(images), 1, scratch)


def small_images() -> Work:
    """Images of 32 x 32 in memory, on one core."""
    images = data.make_small_images(1024)
    pixels = images.images
    peers = views_by_peers(lambda i: Image.fromarray(pixels[i]), lambda i: pixels[i], len(images), 32)
    forms = {
        "everything on the CPU (default without a GPU)": by_batch(images, 32, 512, finished=True),
        "color on the device (the worker's part)": by_batch(images, 32, 512, finished=False),
        "published, collated": one_by_one(images, 32, 512),
    }
    return Work("images of 32 x 32 in memory to two views, one core", forms | peers, len(images), 1)


def decoders() -> Work:
    """Make the work of decoding a JPEG of 500 x 375 to pixels, on one core."""
    import cv2
    from torchvision.io import ImageReadMode, decode_jpeg

    with tempfile.TemporaryDirectory() as scratch:
        data.make_photographs(Path(scratch), 50)
        files = [f.read_bytes() for f in sorted(Path(scratch).rglob("*.jpg"))]

    def by_torchvision(content):
        planes = decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB)
        return planes.permute(1, 2, 0).numpy()

    ways = {
        "ours: simplejpeg, else Pillow": lambda content: decoding.decode(content, "file"),
        "Pillow": lambda content: np.array(Image.open(io.BytesIO(content)).convert("RGB")),
        "cv2": lambda content: cv2.cvtColor(cv2.imdecode(np.frombuffer(content, np.uint8), 1), cv2.COLOR_BGR2RGB),
        "torchvision.io": by_torchvision,
    }
    found = {name: torch.as_tensor(way(files[0])).double() for name, way in ways.items()}
    for name, pixels in found.items():
        must_equal(name, pixels.mean(), found["Pillow"].mean(), 0.5)
    must_equal("ours, each pixel", next(iter(found.values())), found["Pillow"], 0)
    forms = {name: (lambda way=way: [way(content) for content in files]) for name, way in ways.items()}
    return Work("JPEGs of 500 x 375 to pixels, one core", forms, len(files), 1)


# ---- a training step -------------------------------------------------------------------------------------------------


def build_package_step(begun: Training, loss: Callable) -> Callable[[], float]:
    """Build a step as the packages' guides build it, of a training's encoders and batch: loss(q, k, labels)."""
    from lightly.models.utils import update_momentum

    model, (views, labels) = copy.deepcopy(begun.run.model), begun.batch
    query = torch.nn.Sequential(model.encoder, model.head)
    key = torch.nn.Sequential(model.key_encoder, model.key_head)
    optimizer = torch.optim.SGD(query.parameters(), begun.stepper.set_rate(0), momentum=0.9, weight_decay=1e-4)

    def step():
        update_momentum(query, key, model.momentum)
        with torch.no_grad():
            k = F.normalize(key(views[1]), dim=1)
        found = loss(F.normalize(query(views[0]), dim=1), k, labels)
        optimizer.zero_grad()
        found.backward()
        optimizer.step()
        return found.item()

    return step


def step_of(model: str, batch: int) -> Work:
    """Make the work of a step of ours and of the packages, on one encoder."""
    from lightly.loss import NTXentLoss

    criterion = NTXentLoss(TAU, memory_bank_size=(4096, 128))
    labeled = fill_bank(F.normalize(torch.randn(4096, 128), dim=1), torch.randint(100, (4096,)))
    with tempfile.TemporaryDirectory() as scratch:
        case = Case(model, 32, batch, 4096)
        case.make_images(Path(scratch))
        begin = partial(Training, case, Path(scratch), torch.device("cpu"))
        ours, contiguous, plain = (begin(f"--channels_last {last}") for last in (True, False, False))
    forms = {
        "RINCE out-in, channels_last (default)": ours.take_steps,
        "the same, contiguous": contiguous.take_steps,
        "published loop, plain": build_plain_steps(plain),
    }
    first = [run() for run in forms.values()]
    must_equal("the published loop's first loss", first[2], first[0], 1e-4)
    forms |= {
        "lightly: MoCo, no labels": build_package_step(contiguous, lambda q, k, _: criterion(q, k)),
        "pytorch-metric-learning: labeled bank": build_package_step(contiguous, labeled),
        "lightly, channels_last": build_package_step(ours, lambda q, k, _: criterion(q, k)),
        "pytorch-metric-learning, channels_last": build_package_step(ours, labeled),
    }
    return Work(f"a training step, {model}, batch {batch} of 32 x 32, bank 4,096, 100 classes", forms, batch)


WORKS = {
    "bank": over_a_bank,
    "batch": in_the_batch,
    "curve": retrieval,
    "knn": nearest,
    "gaussian": gaussian,
    "photographs": photographs,
    "small_images": small_images,
    "decoders": decoders,
    "step_resnet8": partial(step_of, "resnet8", 256),
    "step_resnet18": partial(step_of, "resnet18", 64),
}


def measure(work: Work, rounds: int) -> list[dict]:
    """Return a row for each form of the work, ours first."""
    times, rows = in_turn(work.forms, rounds), []
    for name, seconds in times.items():
        middle = statistics.median(seconds)
        row = {"form": name, "ms": 1000 * middle, "times ours": ratio(seconds, next(iter(times.values())))}
        rows.append(row | ({"images/s": work.images / middle} if work.images else {}))
    return rows


def get_parser():
    p = parser(__doc__)
    what = f"comparisons to run: {', '.join(WORKS)} (default: all)"
    p.add_argument("--only", nargs="+", choices=WORKS, default=list(WORKS), metavar="NAME", help=what)
    p.add_argument("--rounds", type=int, default=5, help=ROUNDS)
    p.add_argument("--threads", type=int, help="threads of torch (default: one per core)")
    return p


def main():
    args = get_parser().parse_args()
    missing = [package for module, package in PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise util.InputError(f'--only: packages are missing: {", ".join(missing)}; pip install ".[bench]"')
    threads = args.threads or torch.get_num_threads()
    for name in args.only:
        torch.set_num_threads(threads)
        work = WORKS[name]()
        torch.set_num_threads(work.threads or threads)
        report(work.title, measure(work, args.rounds), args.json, name=name, libraries=PACKAGES.values())
        print()


if __name__ == "__main__":
    util.run_command(main)
