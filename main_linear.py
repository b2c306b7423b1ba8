"""Linear probe: a linear classifier on a frozen encoder.

python main_linear.py --ckpt save/SupCon/digits_models/NAME
python main_linear.py --dataset cifar100 --data_folder ./data --learning_rate 5 --ckpt PATH --cache_features
"""

import time

import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

import datasets
import distributed
import frozen
import loading
import options
import results
import runs
import training
import util
from datasets import augmentation

SMALL = dict(epochs=30, batch_size=64, learning_rate=0.1, cosine=True, num_workers=0)
RECIPES = {"digits": SMALL, "fashion_mnist": {**SMALL, "num_workers": 2}}


def get_parser():
    p = options.parser(__doc__)
    options.add_data(p, datasets.NAMES)
    options.add_evaluation(p)
    options.flag(
        p, "--cache_features", help="probe features without augmentation, extracted once: far cheaper, other figures"
    )
    options.add_training(p)
    options.add_distributed(p)
    # the probe's own defaults: Khosla et al. 2020
    p.set_defaults(
        epochs=100, learning_rate=0.1, lr_decay_epochs=(60, 75, 90), lr_decay_rate=0.2, weight_decay=0.0, save_freq=100
    )
    p.set_defaults(precision="float32")  # a probe measures: figures to the last digit
    return p


def worker(args, device):
    """One process of the run: data, frozen encoder, classifier, resume, loop."""
    begin = time.perf_counter()
    util.seed_everything(args.seed)
    with distributed.main_first():
        train, test = training.classification_data(args)
        net = frozen.load(args, train)
        kind = "cached" if args.cache_features else "augmented"
        detail = f"{kind}_lr{args.learning_rate:g}_seed{args.seed}"
        run = runs.Run(args, "linear", args.exp_name or f"{net.name}_{net.record['sha256'][:8]}_{detail}")
    train, test = loading.check_images(run, device, training=train, validation=test)
    counts = {"train": len(train), "validation": len(test)}
    facts = {"classes": train.classes, "encoder": net.record["sha256"], "cache_features": args.cache_features}
    encoder = net.encoder.to(device, memory_format=loading.memory_format(args))
    if args.cache_features:
        train = TensorDataset(*frozen.features(net, train, args, device, "training"))
        test = TensorDataset(*frozen.features(net, test, args, device, "validation"))
        encoder = nn.Identity()
    else:
        loading.tolerate_damage(args, train)
        spec = datasets.spec(args.dataset)
        views = augmentation.Augmentation(
            net.size, tuple(net.mean), tuple(net.std), spec.crop_scale, spec.flip, colour=False, views=1
        )
        train = loading.augmented(train, args, device, views)
        test.transform = net.transform
    loader, sampler = loading.training_loader(train, args, device)
    validation = loading.share_loader(test, args, device)
    classifier = nn.Linear(net.encoder.dim, len(facts["classes"])).to(device)
    model, wrapped = nn.Sequential(encoder, classifier).eval(), training.parallel(classifier)
    optimizer = training.sgd(classifier, args)
    run.begin(classifier, optimizer, sampler, facts, train, training.gradient_scaler(args, device))
    run.say(f"linear probe, {kind}: {len(facts['classes'])} classes on {net.encoder.dim} dimensions of {net.name}")

    def step(images, labels):
        logits = wrapped(encoder(images))
        share = training.share_of_batch(args, labels)
        return share * F.cross_entropy(logits, labels), share * training.accuracy(logits, labels)

    for epoch in run.epochs():
        training.classification_epoch(run, loader, step, model, validation, optimizer, epoch, device)
    run.close()
    if distributed.is_main():
        metrics = {"best": run.best, "last": run.latest}
        path = results.write(
            args, "linear", detail, name=args.exp_name or net.name, metrics=metrics, checkpoint=net.record,
            images=counts, data_folders={"images": args.data_folder}, seconds=time.perf_counter() - begin,
            more={"probe": kind, **net.about()},
        )  # fmt: skip
        results.show(f"probe ({kind})", metrics)
        print(f"saved {path}", flush=True)


def main():
    distributed.launch(worker, training.parse(get_parser(), RECIPES))


if __name__ == "__main__":
    util.run_command(main)
