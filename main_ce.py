"""Cross-entropy baseline: joint training of an encoder and a linear classifier.

python main_ce.py                           the digits of scikit-learn, a minute on a laptop
python main_ce.py --dataset path --data_folder MY_IMAGES --model resnet18 --cosine --epochs 100
"""

import time
from functools import partial

import util  # first: where packages are missing it says what to do

# isort: split
import datasets
from engine import factory, objective
from engine.batches import loading
from engine.cli import config, options
from engine.cli.parsing import Means
from engine.encoder import pretrained, records
from engine.processes import distributed
from engine.processes.launch import launch
from engine.run import runs
from engine.train import training
from engine.train.optimization import describe_precision
from networks.classifier import Classifier

RECIPES = {
    "digits": dict(
        model="resnet20", epochs=15, batch_size=64, learning_rate=0.1, cosine=True, num_workers=0, save_freq=10
    ),
    "fashion_mnist": dict(model="resnet20", epochs=20, learning_rate=0.2, cosine=True, num_workers=2, save_freq=10),
    "features": options.HEAD,
}


def get_parser():
    p = options.parser(__doc__)
    options.add_data(p, datasets.NAMES)
    g = p.add_argument_group("model and classes", means=Means.RESULT)
    options.add_encoder(g)
    options.flag(g, "--syncBN", help=options.SYNC_BN)
    of_more = "train on the classes of ImageNet-100 only, of a folder that holds more"
    options.flag(g, "--imagenet100", means=Means.SUBSET | Means.PIXELS, help=of_more)
    options.add_cross_entropy(p)
    options.add_views(p)
    options.add_training(p)
    options.add_distributed(p)
    p.set_defaults(epochs=500, learning_rate=0.2, lr_decay_epochs=(350, 400, 450))
    return p


def worker(args, device):
    """One process of the run: data, model, optimizer, resume, loop."""
    begin = time.perf_counter()
    util.seed_everything(args.seed)
    with distributed.main_first():
        only = datasets.class_list("ImageNet-100") if args.imagenet100 else ()
        train, test = datasets.build_pair(args.dataset, factory.find_data(args), factory.select_images(args, only))
        distributed.say((train.left_out + test.left_out).describe())
        datasets.check_several_classes(train, args.data_folder)
        run = runs.Run(args, "SupCon", run_name(args), train.images)
        start = pretrained.choose_start(args.model, args.init, args.pretrained, run.source)
        seen = datasets.complete_views(args.dataset, factory.chosen_views(args).fill_from(start.views), train)
        targets, title = objective.build_targets(args, train, device)
        encoder = factory.build_encoder(args, start, seen)
        encoder = training.sync_batchnorm(encoder, args.model, device) if args.syncBN else encoder
    skip, how = factory.skips_damage(args), factory.loading(args, device, args.channels_last)
    train, test = loading.check_images(run, device, args.check_data, skip, {"training": train, "validation": test})
    if skip:
        train.tolerate_damage()
    test.transform = factory.make_transform(args, seen)
    images = factory.make_training_views(args, train, seen, device, args.use_ssl_augmentations, count=1)
    loader, sampler = loading.training_loader(
        images, how, args.seed, factory.choose_balance(args, train.labels, train.classes)
    )
    model = Classifier(encoder, len(train.classes), targets.superclasses)
    model = training.place_model(model, device, how.memory_format, args.compile)
    wrapped = training.wrap_parallel(model)
    stepper = factory.stepper(args, model, device)
    validation = partial(training.validate, model, loading.share_loader(test, how), stepper, targets.superclass)
    facts = {"classes": train.classes, **seen.to_dict(), "pretrained": start.pretrained, "objective": title}
    run.begin(model, stepper, sampler, facts, train)
    run.say(f"{title}: {len(train.classes)} classes, {len(train)} training and {len(test)} validation images")

    def step(images, labels):
        logits = wrapped(images)
        share = training.compute_share(labels, args.batch_size)
        right = training.compute_accuracy(logits, labels, targets.superclass)
        return share * targets.loss(logits.float(), labels), share * right

    for epoch in run.epochs():
        training.classification_epoch(run, loader, step, validation, stepper, epoch)
    run.close()
    if distributed.is_main():
        metrics = {"best": run.best, "last": run.latest}
        record = {"path": str(run.last.resolve()), "sha256": util.sha256(run.last)}
        record |= {"model": args.model, "epoch": args.epochs}
        images, seconds = {"train": len(train), "validation": len(test)}, round(time.perf_counter() - begin, 2)
        about = {"images": images, "seconds": seconds, "objective": title, **describe_precision(stepper.precision)}
        given, folders = options.recorded(args), factory.name_data(args)
        path = records.write(given, "cross_entropy", run_name(args), "", metrics, record, folders, about)
        records.show("cross-entropy", metrics)
        print(f"saved {path}", flush=True)


def run_name(args) -> str:
    """--exp_name, or a name made of the options."""
    images = options.images_in_name(args.images_per_class)
    how = "".join([f"_{args.targets}" if args.targets != "hard" else "", "_two_heads" if args.heads == 2 else ""])
    return args.exp_name or f"cross_entropy{how}_{util.plain_name(args.model)}{images}_seed{args.seed}"


def main():
    args = config.parse(get_parser(), RECIPES)
    runs.wait_for_predecessor(args, "SupCon", run_name(args))
    launch(partial(worker, args), factory.processes(args), training=True)


if __name__ == "__main__":
    util.run_command(main)
