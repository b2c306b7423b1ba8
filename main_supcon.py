"""Contrastive training of an encoder with ranked positives (RINCE), SupCon and other losses.

python main_supcon.py                       RINCE on the digits of scikit-learn, a minute on a laptop
python main_supcon.py --dataset path --data_folder MY_IMAGES --ranking MY_SUPERCLASSES.yaml
python main_supcon.py --dataset path --data_folder MY_IMAGES --instance_ranks MY_GROUPS.csv
python main_supcon.py --features MY_FEATURES.npz --ranking MY_SUPERCLASSES.yaml     a head on features, in seconds
"""

from functools import partial

import util  # first: where packages are missing it says what to do

# isort: split
from torch import nn

import datasets
from engine import factory, objective
from engine.batches import loading
from engine.cli import config, options
from engine.cli.parsing import Means
from engine.encoder import pretrained
from engine.processes import distributed
from engine.processes.launch import launch
from engine.run import runs
from engine.train import monitor, training
from networks.contrastive import ContrastiveModel, Heads, projection_head
from networks.memory_bank import MemoryBank
from util import InputError

# what differs from the published defaults where a data set is so small that they make no sense
RECIPES = {
    "digits": dict(
        model="resnet20", epochs=15, batch_size=64, memorybank_size=512, feat_dim=64, learning_rate=0.1, cosine=True,
        num_workers=0, ranking="superclass", save_freq=10,
    ),
    "fashion_mnist": dict(
        model="resnet20", epochs=20, memorybank_size=4096, learning_rate=0.3, cosine=True, num_workers=2,
        ranking="superclass", save_freq=10,
    ),
    "features": options.HEAD,
}  # fmt: skip


def get_parser():
    p = options.parser(__doc__, options.OTHER_DEFAULTS)
    options.add_data(p, datasets.NAMES)
    g = p.add_argument_group("model", means=Means.RESULT)
    options.add_encoder(g)
    fixed = {"type": options.positive_int, "means": Means.FIXED}
    g.add_argument("--feat_dim", default=128, help="dimensions of the embedding after the projection head", **fixed)
    g.add_argument("--memorybank_size", default=4096, help="keys in the memory bank", **fixed)
    names = "--momentum_encoder_decay", "--m"
    g.add_argument(*names, dest="m", type=options.fraction, default=0.99, help="momentum of the momentum (key) encoder")
    options.flag(g, "--syncBN", help=options.SYNC_BN)
    options.flag(g, "--shuffle_bn", help="shuffle keys over the processes for BatchNorm, as MoCo does")
    options.add_objective(p)
    options.add_views(p)
    options.add_training(p)
    options.add_watching(p)
    options.add_distributed(p)
    return p


def build_model(args, encoder, criterion, device, memory_format):
    """Query and key encoder over one bank, the same on every process since the seed is."""
    heads = objective.count_heads(args)
    bank = MemoryBank(args.memorybank_size, heads * args.feat_dim)
    if args.features:  # whose encoder has the hidden layer; a row of weights is a head's alone
        head = nn.Sequential(nn.Linear(encoder.dim, heads * args.feat_dim))
    elif heads > 1:
        head = Heads(*(projection_head(encoder.dim, args.feat_dim) for _ in range(heads)))
    else:
        head = projection_head(encoder.dim, args.feat_dim)
    model = ContrastiveModel(encoder, head, bank, criterion, args.m)
    if distributed.world_size() > 1:
        model.gather = partial(distributed.gather, total=args.batch_size)
        model.shuffle = partial(distributed.encode_shuffled, total=args.batch_size) if args.shuffle_bn else None
    if args.syncBN:
        model.encoder = training.sync_batchnorm(model.encoder, args.model, device)
    return training.place_model(model, device, memory_format, args.compile)


def worker(args, device):
    """One process of the run: data, model, optimizer, resume, loop."""
    util.seed_everything(args.seed)
    if args.memorybank_size < args.batch_size:
        raise InputError(f"--memorybank_size {args.memorybank_size} is smaller than --batch_size {args.batch_size}")
    with distributed.main_first():
        data, nested = factory.load_data(args)
        run = runs.Run(args, "SupCon", args.exp_name or default_name(args), data.images)
        start = pretrained.choose_start(args.model, args.init, args.pretrained, run.source)
        seen = datasets.complete_views(args.dataset, factory.chosen_views(args).fill_from(start.views), data)
        criterion, summary, ranking = objective.build_loss(args, data, nested)
        held_out = factory.held_out(args, factory.make_transform(args, seen), data, nested)
    skip, how = factory.skips_damage(args), factory.loading(args, device, args.channels_last)
    (data,) = loading.check_images(run, device, args.check_data, skip, {"training": data})
    if skip:
        data.tolerate_damage()
    views = factory.make_training_views(args, data, seen, device)
    balanced = factory.choose_balance(args, *factory.finest(data, nested))
    loader, sampler = loading.training_loader(views, how, args.seed, balanced)
    with distributed.main_first():  # it may download weights
        encoder = factory.build_encoder(args, start, seen)
    model = build_model(args, encoder, criterion, device, how.memory_format)
    wrapped, processes = training.wrap_parallel(model), distributed.world_size()
    stepper = factory.stepper(args, model, device)
    watch = monitor.Watch(views, held_out, args.knn_freq, args.epochs, how, stepper.autocast)
    facts = {"classes": data.classes, **seen.to_dict(), "ranking": ranking, "pretrained": start.pretrained}
    facts["objective"] = objective.describe_loss(args)
    run.begin(model, stepper, sampler, facts, data)
    run.say(summary)

    def step(views, labels):
        terms = wrapped(*views, labels).over_processes(distributed.all_reduce, processes)
        return terms.loss(), terms.per_rank()

    for epoch in run.epochs():
        loss, per_rank, images_per_second = training.train_epoch(run, loader, step, stepper, epoch)
        known = model.bank.labels[model.bank.labels >= 0], model.bank.labels  # of anchors as in the bank
        positives = criterion.positives_per_anchor(*known)
        chance = criterion.chance(*known, model.bank.keys.shape[1]).tolist()
        scalars = {"loss": loss, "learning_rate": stepper.optimizer.param_groups[0]["lr"], **loader.scalars()}
        scalars |= {f"loss_rank_{r}": x for r, x in enumerate(per_rank)}
        scalars |= {f"chance_rank_{r}": x for r, x in enumerate(chance)}
        scalars |= {f"positives_rank_{r}": x for r, x in enumerate(positives.tolist())}
        scalars |= {f"tau_rank_{r}": tau for r, tau in enumerate(criterion.taus)}
        scalars |= watch.scalars(model, epoch)
        scalars |= loading.report_damage(run, data, device)
        run.log(epoch, scalars, images_per_second)
        if epoch == run.resumed_from + 1:
            run.say(monitor.compare_with_chance(per_rank, chance))
        run.save(epoch)
        if epoch == run.resumed_from + 1:
            run.show(watch.draw_pairs)
    run.show(partial(watch.project, model=model))
    run.close()


def default_name(args) -> str:
    """Return a run's name where the user gave none."""
    images, model = options.images_in_name(args.images_per_class), util.plain_name(args.model)
    return f"{objective.name_loss(args)}_{model}{images}_seed{args.seed}"


def main():
    args = config.parse(get_parser(), RECIPES)
    runs.wait_for_predecessor(args, "SupCon", args.exp_name or default_name(args))
    launch(partial(worker, args), factory.processes(args), training=True)


if __name__ == "__main__":
    util.run_command(main)
