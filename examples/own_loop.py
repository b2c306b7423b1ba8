"""Train an encoder of digits with RINCE in a loop of plain torch: `python -m examples.own_loop`."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

from evaluation import other_class_map, retrieval_metrics
from losses import RINCELoss
from networks.contrastive import ContrastiveModel, projection_head
from networks.memory_bank import MemoryBank

# How a digit is drawn (closed loop, straight stroke, open curve), and whether it has a curve. Three ranks: the same
# digit (similarity 1), drawn alike (0.75), both curved (0.5). All other pairs are negatives.
DRAWN = torch.tensor([0, 1, 2, 2, 1, 2, 0, 1, 0, 0])
CURVED = DRAWN != 1
SIMILARITY = 0.5 * (CURVED[:, None] == CURVED) + 0.25 * (DRAWN[:, None] == DRAWN) + 0.25 * torch.eye(10)


def make_view(images):
    """Warp each image by a random affine map."""
    maps = torch.eye(2, 3) + 0.1 * torch.randn(len(images), 2, 3)
    return F.grid_sample(images, F.affine_grid(maps, images.shape, align_corners=False), align_corners=False)


@torch.no_grad()
def measure(encoder, train, test):
    """Search for the test images among the training images."""
    encoder.eval()
    (gallery, gallery_labels), (queries, labels) = train, test
    found = encoder(queries), labels, encoder(gallery), gallery_labels
    metrics = retrieval_metrics(*found)
    return {"R@1": metrics["R@1"], "mAP": metrics["mAP"], "mAP of other digits": other_class_map(*found, groups=DRAWN)}


def main(epochs=20, batch_size=64):
    """Train and print; return the metrics before and after."""
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16  # [1797, 1, 8, 8]
    parts = train_test_split(images, torch.tensor(digits.target), test_size=0.2, random_state=0, stratify=digits.target)
    train, test = parts[0::2], parts[1::2]

    encoder = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1, stride=2), nn.BatchNorm2d(64), nn.ReLU(),
        nn.Flatten(), nn.Linear(64 * 4 * 4, 128), nn.ReLU(),
    )  # fmt: skip
    head, bank, criterion = projection_head(128, 64), MemoryBank(512, 64), RINCELoss(SIMILARITY, variant="in")
    model = ContrastiveModel(encoder, head, bank, criterion)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)

    before = measure(encoder, train, test)
    for epoch in range(epochs):
        model.train()
        history = []
        for batch in torch.randperm(len(train[0])).split(batch_size):
            loss = model(make_view(train[0][batch]), make_view(train[0][batch]), train[1][batch]).loss()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            history.append(loss.item())
        scheduler.step()
        print(f"epoch {epoch + 1}  loss {sum(history) / len(history):.3f}")
    after = measure(encoder, train, test)
    for name in before:
        print(f"{name}: {100 * before[name]:.1f} % before, {100 * after[name]:.1f} % after")
    return before, after


if __name__ == "__main__":
    main()
