"""torch.hub entry points: the losses, and an encoder from a checkpoint file.

torch.hub.load("FOLDER_OF_THIS_FILE", "rince_loss", class_similarity, source="local")

The folder's modules (losses, networks, engine, util) are imported under these names: a program with a `losses` of
its own had better take the file losses.py along under another name.
"""

import losses as _losses
from engine.run import checkpoint as _checkpoint
from networks import encoders as _encoders
from networks import resnet as _resnet
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
    """The encoder of a checkpoint file or run's folder, ours or published, that engine.export wrote, or of a file of
    torchvision's or timm's, in eval mode: [N, 3, H, W] -> [N, d].

    Images are to be of the size, mean and std that the checkpoint's entries of these names say.
    encoder_name: as --model, where the file does not say it. Read with weights_only=True, loaded strictly. Raises
    util.InputError, a ValueError, where the file is none, or holds another encoder, of which timm raises RuntimeError.
    """
    return _model(ckpt, encoder_name)[0]


def classifier(ckpt, encoder_name: str | None = None):
    """The cross-entropy model of a checkpoint, in eval mode: [N, 3, H, W] -> logits [N, classes], with `encoder` and
    its last layer `fc`. Raises ValueError for a contrastive model, and as `encoder`.
    """
    net, weights = _model(ckpt, encoder_name)
    if not weights:
        raise ValueError(f"ckpt {ckpt} holds no linear classifier; it is a contrastive model")
    model = _Classifier(net, len(weights["bias"]))
    model.fc.load_state_dict(weights)
    return model.eval()


def _model(ckpt, encoder_name):
    path = _checkpoint.find(ckpt, "ckpt")
    timms = encoder_name and _encoders.of_timm(encoder_name)
    if timms and (file := _checkpoint.for_timm(encoder_name, path, "ckpt")):
        return _encoders.encoder(encoder_name, weights=file[0]).eval(), {}
    state = _checkpoint.load(path, "ckpt", bare=True)
    weights, classifier = _checkpoint.encoder_weights(state, f"ckpt {path}")
    name = encoder_name or _checkpoint.trained_options(state).get("model")
    if name is None:
        raise ValueError(f"ckpt {path} does not say which encoder it holds; give encoder_name")
    net = _encoders.encoder(name, _resnet.has_small_stem(weights), state.get("size"))
    _checkpoint.load_strictly(net, weights, f"ckpt {path}")
    return net.eval(), classifier
