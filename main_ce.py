"""Cross-entropy baseline: encoder and linear classifier, trained together.

python main_ce.py                           scikit-learn's digits, a minute on a laptop
python main_ce.py --dataset path --data_folder MY_IMAGES --model resnet18 --cosine --epochs 100
"""

import time

import torch.nn.functional as F

import checkpoint
import datasets
import distributed
import loading
import options
import results
import runs
import training
import util
from datasets import augmentation
from networks.classifier import Classifier

RECIPES = {
    "digits": dict(
        model="resnet20", epochs=15, batch_size=64, learning_rate=0.1, cosine=True, num_workers=0, save_freq=10
    ),
    "fashion_mnist": dict(model="resnet20", epochs=20, learning_rate=0.2, cosine=True, num_workers=2, save_freq=10),
}


def get_parser():
    p = options.parser(__doc__)
    options.add_data(p, datasets.NAMES)
    g = p.add_argument_group("model and views")
    g.add_argument("--model", default="resnet50", help="encoder: torchvision's ResNets, resnet8 to resnet56 narrow")
    options.flag(g, "--use_ssl_augmentations", help="augment as the contrastive methods do; else crop and flip")
    options.flag(g, "--syncBN", help=options.SYNC_BN)
    options.flag(g, "--imagenet100", help="use ImageNet-100's classes only, of a folder that holds more")
    options.add_training(p)
    options.add_distributed(p)
    p.set_defaults(epochs=500, learning_rate=0.2, lr_decay_epochs=(350, 400, 450))
    return p


def worker(args, device):
    """One process of the run: data, model, optimiser, resume, loop."""
    begin = time.perf_counter()
    util.seed_everything(args.seed)
    with distributed.main_first():
        only = datasets.class_list("ImageNet-100") if args.imagenet100 else ()
        train, test = training.classification_data(args, only)
        spec, size, mean, std = training.image_settings(args, train)
        encoder = training.sync_batchnorm(args, training.build_encoder(args.model, spec.small), device)
        name = args.exp_name or f"cross_entropy_{args.model}_seed{args.seed}"
        run = runs.Run(args, "SupCon", name)
    train, test = loading.check_images(run, device, training=train, validation=test)
    loading.tolerate_damage(args, train)
    colour = args.use_ssl_augmentations and spec.colour
    views = augmentation.Augmentation(size, mean, std, spec.crop_scale, spec.flip, colour, views=1)
    test.transform = augmentation.evaluation(size, mean, std, spec.small)
    loader, sampler = loading.training_loader(loading.augmented(train, args, device, views), args, device)
    validation = loading.share_loader(test, args, device)
    model = training.prepared(Classifier(encoder, len(train.classes)), args, device)
    wrapped = training.parallel(model)
    optimizer = training.sgd(model, args)
    facts = {"classes": train.classes, "size": size, "mean": list(mean), "std": list(std)}
    run.begin(model, optimizer, sampler, facts, train, training.gradient_scaler(args, device))
    run.say(f"cross-entropy: {len(train.classes)} classes, {len(train)} training and {len(test)} validation images")

    def step(images, labels):
        logits = wrapped(images)
        share = training.share_of_batch(args, labels)
        return share * F.cross_entropy(logits.float(), labels), share * training.accuracy(logits, labels)

    for epoch in run.epochs():
        training.classification_epoch(run, loader, step, model, validation, optimizer, epoch, device)
    run.close()
    if distributed.is_main():
        metrics = {"best": run.best, "last": run.latest}
        path = results.write(
            args, "cross_entropy", "", name=name, metrics=metrics,
            checkpoint={"path": str(run.last.resolve()), "sha256": checkpoint.sha256(run.last), "model": args.model,
                        "epoch": args.epochs},
            images={"train": len(train), "validation": len(test)}, data_folders={"images": args.data_folder},
            seconds=time.perf_counter() - begin,
        )  # fmt: skip
        results.show("cross-entropy", metrics)
        print(f"saved {path}", flush=True)


def main():
    distributed.launch(worker, training.parse(get_parser(), RECIPES))


if __name__ == "__main__":
    util.run_command(main)
