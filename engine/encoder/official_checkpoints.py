"""The weights of the official implementation: eight files, known by their SHA-256 under whatever path."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Weights:
    """One published file.

    data_set and method: as the paper calls them; file: its place among the published ones; sha256: its hash;
    classes: how many of its classifier's outputs were trained, the first ones; None: all of them, or no classifier.
    """

    data_set: str
    method: str
    file: str
    sha256: str
    classes: int | None = None

    @property
    def name(self) -> str:
        """Such as "RINCE out-in, CIFAR-100"."""
        return f"{self.method}, {self.data_set}"

    @property
    def place(self) -> Path:
        """Where recipes look for it."""
        return FOLDER / self.data_set / self.file


FOLDER = Path("data/published")
WEIGHTS = (
    Weights("CIFAR-100", "RINCE in", "RINCE_in/last.pth",
            "8d8455288699dfdee4cd4fa516d6619d53a8777c23323152ff1d32cf491d3c27"),
    Weights("CIFAR-100", "RINCE out", "RINCE_out/last.pth",
            "cc36ce15b87e4fec37f98af5e5cdd11b851bf86609de248e4c4e6ef9ed3e80cb"),
    Weights("CIFAR-100", "RINCE out-in", "RINCE_out_in/last.pth",
            "caf46f598f250d3a91f065587a259dfb0ec24e33c1cef302f800f4fd28c4dec1"),
    Weights("CIFAR-100", "SCL in", "SCL_in/last.pth",
            "066ca279d6f34a3db69a11d4ac65d4d6c045c5c350bd05c196eec5195d0a653d"),
    Weights("CIFAR-100", "SCL out", "SCL_out/last.pth",
            "549666f58c8b81033f930b9a92ec0faf70931a615635483e73adc179c8f1241e"),
    # torchvision's 1000 outputs, trained on 100 class folders: the labels are their numbers, 0 to 99
    Weights("ImageNet-100", "cross-entropy", "CE/ckpt_epoch_500.pth",
            "b7e32d43c208327dc85ea98fefcb335cfefc559dd432a186882c4a1bc7b1dfe3", classes=100),
    Weights("ImageNet-100", "RINCE out-in", "rince/last.pth",
            "cdaa63add469ebc8d4146c15bb311b9e83b3a85fc2e2ea0c77558a682dfb4c56"),
    Weights("ImageNet-100", "SCL out", "scl/last.pth",
            "d616585c1cacabb5e1b287e4997e0dcfea722f734c23ecb830ccc13c39e0e54f"),
)  # fmt: skip


def find(sha256: str) -> Weights | None:
    """Find the published weights whose file has this hash."""
    return next((weights for weights in WEIGHTS if weights.sha256 == sha256), None)


def find_by_place(path: Path) -> Weights | None:
    """Find the published weights that belong at a path: it ends in data set and file, CIFAR-100/RINCE_in/last.pth."""
    parts = Path(path).absolute().parts
    return next((w for w in WEIGHTS if parts[-3:] == (w.data_set, *Path(w.file).parts)), None)
