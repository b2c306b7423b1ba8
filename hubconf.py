"""torch.hub entry points: the losses, and an encoder from a checkpoint file.

torch.hub.load("FOLDER_OF_THIS_FILE", "rince_loss", class_similarity, source="local")

The folder's modules (losses, networks, engine, util) are imported under these names: a program with a `losses` of
its own had better take the folder losses along under another name.
"""

import losses as _losses
import util as _util
from engine.encoder import pretrained as _pretrained
from networks.classifier import Classifier as _Classifier

dependencies = ["torch", "torchvision", "numpy", "tqdm"]


def rince_loss(class_similarity, bank: bool = True, **options):
    """losses.RINCELoss over a [C, C] table; bank=False: losses.InBatchLoss over it. options: of RINCELoss."""
    criterion = _losses.RINCELoss(class_similarity, **options)
    return criterion if bank else _losses.InBatchLoss(criterion)


def supcon_loss(num_classes: int, bank: bool = True, **options):
    """losses.SupConLoss; bank=False: losses.InBatchLoss over it. options: of SupConLoss."""
    criterion = _losses.SupConLoss(num_classes, **options)
    return criterion if bank else _losses.InBatchLoss(criterion)


def encoder(ckpt, encoder_name: str | None = None):
    """Load the encoder of a checkpoint file or run's folder, ours or official, that engine.export wrote, or of a file
    of torchvision's or timm's, in eval mode: [N, 3, H, W] -> [N, d].

    Images are to be of the size, mean and std that the checkpoint's entries of these names say.
    encoder_name: as --model, where the file does not say it. Read with weights_only=True, loaded strictly. Raises
    util.InputError, a ValueError, where the file is none, or holds another encoder.
    """
    return _load(ckpt, encoder_name)[0]


def classifier(ckpt, encoder_name: str | None = None):
    """Load the cross-entropy model of a checkpoint, in eval mode: [N, 3, H, W] -> logits [N, classes], with `encoder`
    and its last layer `fc`, that of classes where it has two. Raises ValueError for a contrastive model, and as
    `encoder`.
    """
    net, weights = _load(ckpt, encoder_name)
    if not weights:
        raise ValueError(f"ckpt {ckpt} holds no linear classifier; it is a contrastive model")
    model = _Classifier(net, len(weights["bias"]))
    model.fc.load_state_dict(weights)
    return model.eval()


def _load(ckpt, encoder_name):
    try:
        trained = _pretrained.read_file(ckpt, "ckpt", encoder_name)
        return trained.build(False, trained.content.get("size")).eval(), trained.classifier
    except _util.InputError as error:
        raise _util.InputError(str(error).replace("--model", "encoder_name")) from None
