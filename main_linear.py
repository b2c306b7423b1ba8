"""Linear probe: a linear classifier on a frozen encoder.

python main_linear.py --ckpt save/SupCon/digits_models/NAME
python main_linear.py --dataset cifar100 --data_folder ./data --learning_rate 5 --ckpt PATH --cache_features
"""

import time
from functools import partial

import util  # first: where packages are missing it says what to do

# isort: split
import torch.nn.functional as F
from torch import nn

import datasets
from datasets import augmentation
from engine import factory
from engine.batches import loading
from engine.cli import config, options
from engine.cli.parsing import Means
from engine.encoder import records, trained_encoder
from engine.processes import distributed
from engine.processes.launch import launch
from engine.run import runs
from engine.train import training
from engine.train.optimization import describe_precision
from util import InputError

SMALL = dict(epochs=30, batch_size=64, learning_rate=0.1, cosine=True, num_workers=0)
RECIPES = {"digits": SMALL, "fashion_mnist": {**SMALL, "num_workers": 2}}
RECIPES["features"] = {**SMALL, "cache_features": True}


def get_parser():
    p = options.parser(__doc__)
    options.add_data(p, datasets.NAMES)
    options.add_evaluation(p)
    once = "probe features without augmentation, extracted once: much faster, other results"
    g = p.add_argument_group("probe", means=Means.RESULT)
    options.flag(g, "--cache_features", means=Means.FIXED, help=once)
    options.add_training(p, warm="warm up linearly over 10 epochs")
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
        train, test = datasets.build_pair(args.dataset, factory.find_data(args), factory.select_images(args))
        distributed.say((train.left_out + test.left_out).describe())
        datasets.check_several_classes(train, args.data_folder)
        cache = factory.features_cache(args)
        net = factory.load_layer(args, train)
        kind = "cached" if args.cache_features else "augmented"
        detail = f"{kind}_lr{args.learning_rate:g}{options.images_in_name(args.images_per_class)}_seed{args.seed}"
        name = args.exp_name or f"{net.name}_{net.record['sha256'][:8]}_{detail}"
        run = runs.Run(args, "linear", name, train.images)
    skip, how = factory.skips_damage(args), factory.loading(args, device, args.channels_last)
    train, test = loading.check_images(run, device, args.check_data, skip, {"training": train, "validation": test})
    counts = {"train": len(train), "validation": len(test)}
    facts = {"classes": train.classes, "encoder": net.record["sha256"], "cache_features": args.cache_features}
    encoder = net.encoder.to(device, memory_format=how.memory_format)
    if args.compile:
        encoder.compile()
    if args.cache_features:
        train, test = (
            loading.Resident.of(trained_encoder.extract_features(net, data, title, how, cache), data.labels, device)
            for data, title in ((train, "training"), (test, "validation"))
        )
        encoder = nn.Identity()
    else:
        if skip:
            train.tolerate_damage()
        spec, seen = datasets.spec(args.dataset), net.views
        views = augmentation.Augmentation(
            seen.size, seen.mean, seen.std, spec.crop_scale, spec.flip, colour=False, views=1
        )
        train = loading.build_views(train, views, args.seed, args.augment_on, device)
        test.transform = net.transform
    loader, sampler = loading.training_loader(train, how, args.seed)
    classifier = nn.Linear(net.encoder.dim, len(facts["classes"])).to(device)
    model, wrapped = nn.Sequential(encoder, classifier).eval(), training.wrap_parallel(classifier)
    stepper = factory.stepper(args, classifier, device, warm_for_batch=False)
    validation = partial(training.validate, model, loading.share_loader(test, how), stepper)
    run.begin(classifier, stepper, sampler, facts, train)
    run.say(f"linear probe, {kind}: {len(facts['classes'])} classes on {net.encoder.dim} dimensions of {net.name}")

    def step(images, labels):
        logits = wrapped(encoder(images))
        share = training.compute_share(labels, args.batch_size)
        return share * F.cross_entropy(logits, labels), share * training.compute_accuracy(logits, labels)

    for epoch in run.epochs():
        training.classification_epoch(run, loader, step, validation, stepper, epoch)
    run.close()
    if distributed.is_main():
        metrics = {"best": run.best, "last": run.latest}
        given, name, folders = options.recorded(args), args.exp_name or net.name, factory.name_data(args)
        about = {"images": counts, "seconds": round(time.perf_counter() - begin, 2), "probe": kind}
        about |= net.about() | ({} if args.cache_features else describe_precision(stepper.precision))  # cached: float32
        path = records.write(given, "linear", name, detail, metrics, net.record, folders, about)
        records.show(f"probe ({kind})", metrics)
        print(f"saved {path}", flush=True)


def main():
    args = config.parse(get_parser(), RECIPES)
    if args.features and not args.cache_features:
        raise InputError("--cache_features False: features are not augmented in a probe")
    runs.wait_for_predecessor(args, "linear", args.exp_name)
    launch(partial(worker, args), factory.processes(args), training=True)


if __name__ == "__main__":
    util.run_command(main)
