"""Contrastive pre-training with ranked positives: RINCE, and SupCon (SCL) as its one-rank case.

python main_supcon.py                       RINCE on scikit-learn's digits, a minute on a laptop
python main_supcon.py --dataset path --data_folder MY_IMAGES --ranking MY_SUPERCLASSES.yaml
"""

import time

import datasets
import distributed
import options
import training
import util
from datasets import augmentation, rankings
from losses import RINCELoss
from networks.contrastive import ContrastiveModel, projection_head
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
}  # fmt: skip


def get_parser():
    p = options.parser(__doc__)
    options.add_data(p, datasets.NAMES)
    g = p.add_argument_group("model")
    g.add_argument("--model", default="resnet50", help="encoder: torchvision's ResNets, resnet8 to resnet56 narrow")
    g.add_argument("--feat_dim", type=options.positive_int, default=128, help="dimensions after the projection head")
    g.add_argument("--memorybank_size", type=options.positive_int, default=4096, help="keys in the bank")
    g.add_argument("--m", type=options.fraction, default=0.99, help="momentum of the key encoder")
    g = p.add_argument_group("objective")
    g.add_argument("--loss_type", choices=["rince", "supcon"], help="None: rince, or supcon if n_sim_classes is 1")
    options.flag(g, "--mixed_out_in", "--mixed_out_in_log", help="RINCE out-in: rank 0 out, farther ranks in")
    options.flag(g, "--do_sum_in_log", default=True, help="else: positives summed in the logarithm (in), or not (out)")
    options.flag(g, "--one_loss_per_rank", default=True, help="False: all similar classes count as the own class")
    options.flag(g, "--use_same_and_similar_class", help="cumulative positives: the second rank includes the first")
    g.add_argument("--min_tau", type=options.positive, default=0.1, help="temperature of rank 0")
    g.add_argument("--max_tau", type=options.positive, default=0.6, help="temperature at similarity 0")
    options.flag(g, "--use_dynamic_tau", default=True, help="temperature grows with distance; False: min_tau for all")
    g.add_argument("--min_probability", type=float, default=1e-7, help="harder terms are left out (published); 0: none")
    g = p.add_argument_group("ranking of classes")
    g.add_argument("--ranking", help="identity, superclass, roberta_threshold, or a CSV or YAML file")
    options.flag(g, "--use_supercategories", help="published spelling of --ranking superclass")
    g.add_argument("--similarity_ranking_imagenet", help="published spelling of --ranking for ImageNet-100")
    g.add_argument("--thresholds", "--roberta_float_threshold", type=float, nargs="+", help="falling, one a rank")
    g.add_argument("--hierarchy_k", type=int, default=3, help="largest distance that counts as similar")
    g.add_argument("--similarity_threshold", type=float, default=0.0, help="smaller similarities become 0")
    g.add_argument("--n_sim_classes", type=options.positive_int, help="most similar classes to keep, the own included")
    options.add_training(p)
    options.add_distributed(p)
    return p


def build_criterion(args, classes):
    """The loss over the ranking that the options name, and its one-line summary."""
    supcon = args.loss_type == "supcon" or (args.loss_type is None and args.n_sim_classes == 1)
    ranking = args.ranking or args.similarity_ranking_imagenet or ("superclass" if args.use_supercategories else None)
    if supcon:
        ranking = "identity"
    elif ranking is None:
        raise InputError("RINCE needs a ranking of classes: give --ranking, or --loss_type supcon for none")
    table, _ = rankings.class_similarity(
        ranking,
        classes,
        superclasses=datasets.spec(args.dataset).superclasses,
        thresholds=args.thresholds,
        hierarchy_k=args.hierarchy_k,
        similarity_threshold=args.similarity_threshold,
        n_sim_classes=args.n_sim_classes,
    )
    if not args.one_loss_per_rank:
        table = (table > 0).float()
    variant = "out_in" if args.mixed_out_in else "in" if args.do_sum_in_log else "out"
    max_tau = args.max_tau if args.use_dynamic_tau else args.min_tau
    cumulative = args.use_same_and_similar_class
    try:
        criterion = RINCELoss(table, args.min_tau, max_tau, variant, cumulative, args.min_probability)
    except ValueError as error:
        raise InputError(f"objective: {error}") from None
    return criterion, f"{'SCL' if supcon else 'RINCE'} {variant}: {rankings.summary(table, criterion.taus)}"


def build_model(args, criterion):
    """Query and key encoder over one bank, the same on every process since the seed is."""
    encoder = training.build_encoder(args.model, datasets.spec(args.dataset).small)
    bank = MemoryBank(args.memorybank_size, args.feat_dim)
    head = projection_head(encoder.dim, args.feat_dim)
    return ContrastiveModel(encoder, head, bank, criterion, args.m, distributed.gather)


def worker(args, device):
    """One process of the run: data, model, optimiser, resume, loop."""
    util.seed_everything(args.seed)
    if args.memorybank_size < args.batch_size:
        raise InputError(f"--memorybank_size {args.memorybank_size} is smaller than --batch_size {args.batch_size}")
    with distributed.main_first():
        data = datasets.build(args.dataset, args.data_folder, "train", tuple(args.hold_out))
        spec, size, mean, std = training.image_settings(args, data)
        criterion, summary = build_criterion(args, data.classes)
        run = training.Run(args, "SupCon", args.exp_name or default_name(args))
    data.transform = augmentation.TwoViews(
        augmentation.contrastive(size, mean, std, spec.crop_scale, spec.flip, spec.colour)
    )
    loader, sampler = training.training_loader(data, args, device)
    model = build_model(args, criterion).to(device, memory_format=training.memory_format(device))
    wrapped = training.parallel(model)
    optimizer = training.sgd(model, args)
    facts = {"classes": data.classes, "size": size, "mean": list(mean), "std": list(std)}
    start = run.resume(model, optimizer, facts) if args.resume else 0
    util.seed_everything(args.seed + 1000 * start + distributed.rank() + 1)  # views differ by process, epoch by epoch
    run.say(summary)

    def step(views, labels):
        terms = wrapped(views[:, 0], views[:, 1], labels)
        return terms.loss(), terms.per_rank()

    for epoch in range(start + 1, args.epochs + 1):
        sampler.set_epoch(epoch)
        begin = time.perf_counter()
        loss, per_rank = training.train_epoch(run, loader, step, optimizer, epoch, device)
        seconds = time.perf_counter() - begin
        positives = criterion.positives_per_anchor(model.bank.labels[model.bank.labels >= 0], model.bank.labels)
        scalars = {"loss": loss, "learning_rate": optimizer.param_groups[0]["lr"]}
        scalars |= {f"loss_rank_{r}": x for r, x in enumerate(per_rank)}
        scalars |= {f"positives_rank_{r}": x for r, x in enumerate(positives.tolist())}
        run.log(epoch, scalars, images_per_second=len(loader) * args.batch_size / seconds)
        run.save(epoch, model, optimizer, facts)
    run.close()


def default_name(args) -> str:
    """A run's name where the user gave none."""
    variant = "out_in" if args.mixed_out_in else "in" if args.do_sum_in_log else "out"
    return f"{args.loss_type or 'rince'}_{variant}_{args.model}_seed{args.seed}"


def main():
    args = training.parse(get_parser(), RECIPES)
    distributed.launch(worker, args)


if __name__ == "__main__":
    util.run_command(main)
