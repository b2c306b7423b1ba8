"""Prepare data sets: folders of downloads, packed images, frames of videos.

python -m datasets.prepare imagenet100 --imagenet FOLDER --out data  # ImageNet-100 and its three OOD splits
python -m datasets.prepare tiny_imagenet --source FOLDER --out data  # 180 classes, and 20 OOD classes
python -m datasets.prepare awa2 --source FOLDER --out data           # Animals with Attributes 2
python -m datasets.prepare cifar --out data                          # CIFAR-10 and CIFAR-100, downloaded
python -m datasets.prepare clinc150 --out data                       # CLINC150, texts, downloaded
python -m datasets.prepare pack --data_folder data/imagenet100 --out data/imagenet100_256   # smaller and faster to read
python -m datasets.prepare video FOLDER --fps 2 --shots              # frames of video files, for --instance_ranks

Images are links to the source, or copies with --copy. The source is never changed, and existing files are kept.
--check verifies every class, count and image.
"""

import argparse
import os
import shutil
import sys
from pathlib import Path

import datasets
import util
from datasets import clinc150, folders, packed, sources, text_files, videos
from datasets.decoding import find_damage, write_list
from datasets.packing import pack
from util import InputError

# folder below --out: its class list
IMAGENET = {"imagenet100": "ImageNet-100"} | {
    f"imagenet_outliers_split{i}": f"imagenet_outliers_split{i}" for i in (1, 2, 3)
}
TINY_IMAGENET = {"tiny_imagenet": "tiny_imagenet_inliers", "tiny_imagenet_outliers": "tiny_imagenet_outliers"}
DEVKIT = ("", "data", "ILSVRC2012_devkit_t12/data", "devkit/data", "devkit")
AWA2_CLASSES, AWA2_IMAGES = 50, 37_322


# ---- what goes where: plans are lists of (place below --out, source file or folder) ----------------------------------


def plan_imagenet100(source: Path) -> list[tuple[Path, Path]]:
    """ImageNet-100 and its three OOD splits; validation by class folder or by the ground truth."""
    root = _find_root(source, ("", "Data/CLS-LOC", "ILSVRC/Data/CLS-LOC"), "train", "--imagenet")
    if not (root / "val").is_dir():
        raise InputError(f"--imagenet {source}: {root} has no folder val")
    sorted_val = bool(folders.list_subfolders(root / "val", folders.LeftOut()))
    by_class = None if sorted_val else _sort_validation(source, root / "val")
    return _plan_class_folders(IMAGENET, root, by_class, "--imagenet")


def _plan_class_folders(lists: dict[str, str], root: Path, by_class: dict[str, list[Path]] | None, flag: str):
    """Return the plan of folders with the classes of their lists in train and val; by_class: wnid -> validation images,
    None where they lie in class folders.
    """
    plan = []
    for folder, names in lists.items():
        for wnid in datasets.class_list(names):
            plan.append((Path(folder, "train", wnid), _check_exists(root / "train" / wnid, flag)))
            if by_class is None:
                plan.append((Path(folder, "val", wnid), _check_exists(root / "val" / wnid, flag)))
            elif wnid not in by_class:
                raise InputError(f"{flag} {root}: has no validation image of {wnid}; is the download complete?")
            else:
                plan += [(Path(folder, "val", wnid, f.name), f) for f in by_class[wnid]]
    return plan


def _sort_validation(root: Path, val: Path) -> dict[str, list[Path]]:
    """wnid -> files of a flat validation folder, from LOC_val_solution.csv or the development kit."""
    places = root / "LOC_val_solution.csv", root / "ILSVRC/LOC_val_solution.csv"
    solution = next(filter(Path.is_file, places), None)
    if solution:
        rows = text_files.read_rows(solution, f"--imagenet {solution}")[1:]
        for line, row in rows:
            if len(row) != 2 or not all(row):
                raise InputError(f"--imagenet {solution}, line {line}: must be an image, a comma and its boxes")
        truth = {f"{name}.JPEG": boxes.split()[0] for _, (name, boxes) in rows}
    else:
        truth = _read_development_kit(root, val)
    by_class: dict[str, list[Path]] = {}
    for name, wnid in truth.items():
        by_class.setdefault(wnid, []).append(_check_exists(val / name, "--imagenet"))
    return by_class


def _read_development_kit(root: Path, val: Path) -> dict[str, str]:
    """File name -> wnid: line n of the ground truth is the class number of the n-th validation image."""
    from scipy.io import loadmat

    name = "ILSVRC2012_validation_ground_truth.txt"
    folder = next((root / p for p in DEVKIT if (root / p / name).is_file() and (root / p / "meta.mat").is_file()), None)
    if folder is None:
        kit = f"meta.mat and {name} of the development kit, into ILSVRC2012_devkit_t12/data there"
        raise InputError(f"--imagenet {root}: val holds no class folders; put LOC_val_solution.csv, or {kit}")
    synsets = loadmat(folder / "meta.mat", squeeze_me=True)["synsets"]
    wnid = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
    try:
        numbers = [int(word) for word in text_files.read_text(folder / name, f"--imagenet {folder / name}").split()]
        labels = [wnid[number] for number in numbers]
    except (ValueError, KeyError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"--imagenet {folder / name}: must have one class number per line ({error})") from None
    files = [f.name for f in folders.find_images_below(val, folders.LeftOut())]
    if len(files) != len(numbers):
        raise InputError(f"--imagenet {val}: {len(files)} images, but the ground truth has {len(numbers)} lines")
    return dict(zip(files, labels, strict=True))


def plan_tiny_imagenet(source: Path) -> list[tuple[Path, Path]]:
    """Tiny-ImageNet: 180 classes (tiny_imagenet) and 20 OOD classes (tiny_imagenet_outliers)."""
    root = _find_root(source, ("", "tiny-imagenet-200"), "train", "--source")
    val = sources.read_tiny_imagenet(root, "test")
    by_class: dict[str, list[Path]] = {}
    for file, label in zip(val[0], val[1], strict=True):
        by_class.setdefault(val[2][label], []).append(Path(file))
    return _plan_class_folders(TINY_IMAGENET, root, by_class, "--source")


def plan_awa2(source: Path) -> list[tuple[Path, Path]]:
    """Animals with Attributes 2, by class."""
    root = _find_root(source, ("", "Animals_with_Attributes2"), "JPEGImages", "--source") / "JPEGImages"
    classes = [root / name for name in folders.list_subfolders(root, folders.LeftOut())]
    if len(classes) != AWA2_CLASSES:
        raise InputError(f"--source {root}: {len(classes)} class folders; AwA2 has {AWA2_CLASSES}")
    return [(Path("Animals_with_Attributes2", "JPEGImages", f.name), f) for f in classes]


def _find_root(folder, places, wanted: str, flag: str) -> Path:
    folders.check_folder(folder, flag)
    for place in places:
        if (Path(folder) / place / wanted).is_dir():
            return (Path(folder) / place).resolve()
    raise InputError(f"{flag} {folder}: has no folder {wanted}")


def _check_exists(path: Path, flag: str) -> Path:
    if not path.exists():
        raise InputError(f"{flag} {path}: is missing")
    return path


# ---- carrying a plan out ---------------------------------------------------------------------------------------------


def carry_out(plan: list[tuple[Path, Path]], out: Path, copy: bool) -> int:
    """Link or copy what is not there yet; returns how many. Raises InputError before anything is overwritten."""
    for place, source in plan:
        if out.resolve().is_relative_to(source.resolve()):
            raise InputError(f"--out {out}: is inside the source {source}, which is never changed; give another folder")
        for folder in (out / place).parents:
            if folder != out and folder.is_relative_to(out) and folder.is_symlink():
                raise InputError(f"--out {out}: {folder} is a link; remove it first, nothing is written through links")
    new = [(out / place, source) for place, source in plan if not _is_there(out / place, source, copy)]
    progress = util.Progress("copying" if copy else "linking", len(new), 100)
    for i, (place, source) in enumerate(new, 1):
        try:
            link_or_copy(place, source, copy)
        except (OSError, shutil.Error) as error:
            progress.close()
            reason = getattr(error, "strerror", None) or str(error).split("\n")[0][:200]
            made = f"{i - 1} of {len(new)} are made and stay; the same command continues"
            raise InputError(f"--out {place}: {reason}; {made}") from None
        progress.tick(i, "")
    progress.close()
    return len(new)


def link_or_copy(place: Path, source: Path, copy: bool) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    if not copy:
        return place.symlink_to(source.resolve(), target_is_directory=source.is_dir())
    # under another name first: a crash leaves nothing half copied under the right one
    unfinished = place.with_name(place.name + folders.UNFINISHED)
    if source.is_dir():
        shutil.rmtree(unfinished, ignore_errors=True)
        for file in folders.find_images_below(source, folders.LeftOut()):
            to = unfinished / file.relative_to(source)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, to)
    else:
        shutil.copy2(source, unfinished)
    os.replace(unfinished, place)


def _is_there(place: Path, source: Path, copy: bool) -> bool:
    """Whether `place` is already what the plan wants; anything else that is there is an error."""
    if not place.exists() and not place.is_symlink():
        return False
    if place.is_symlink() and place.resolve() != source.resolve():
        raise InputError(f"--out: {place} is a link to {place.resolve()}, not to {source}; remove it first")
    if place.is_symlink() and copy:
        raise InputError(f"--out: {place} exists and is a link, unlike with --copy; remove it first")
    if not place.is_symlink() and not copy:
        raise InputError(f"--out: {place} exists and is not a link; remove it first")
    if copy and _measure_extent(place) != _measure_extent(source):
        raise InputError(f"--out: {place} exists and differs from {source}; remove it first")
    return True


def _measure_extent(path: Path) -> int:
    """Return the number of images of a folder, or of bytes of a file."""
    return len(folders.find_images_below(path, folders.LeftOut())) if path.is_dir() else path.stat().st_size


def link_images(folder: Path) -> None:
    """images/train and images/val beside train and val: the documented evaluation commands say images."""
    (folder / "images").mkdir(exist_ok=True)
    for split in ("train", "val"):
        link = folder / "images" / split
        if not link.is_symlink() and not link.exists():
            link.symlink_to(Path("..", split), target_is_directory=True)


# ---- checking --------------------------------------------------------------------------------------------------------


def find_published_counts(place: Path) -> tuple[int, int]:
    """Fewest and most published images of a class folder: ImageNet's train, val; Tiny-ImageNet's; AwA2's."""
    if place.parts[0].startswith("imagenet"):
        return (732, 1300) if place.parts[1] == "train" else (50, 50)
    if place.parts[0].startswith("tiny"):
        return (500, 500) if place.parts[1] == "train" else (50, 50)
    return (100, 1645)


def check(plan, out: Path, name: str) -> list[str]:
    """Say what is wrong with the folders of a plan; unreadable images are listed in out/<name>_damaged.txt."""
    places = sorted({place if source.is_dir() else place.parent for place, source in plan})
    problems, owner, images, left_out = [], {}, [], folders.LeftOut()
    for place in places:
        found = folders.find_images_below(out / place, left_out)
        low, high = find_published_counts(place)
        if not low <= len(found) <= high:
            published = f"{low} to {high}" if high > low else low
            problems.append(f"{place}: {len(found)} images, published are {published}")
        for file in found:
            real = os.path.realpath(file)
            if real in owner:
                problems.append(f"{file}: is in {owner[real]} too")
            owner[real] = place
        images += found
    if line := left_out.describe():
        print(line)
    if name == "awa2" and len(images) != AWA2_IMAGES:
        problems.append(f"{len(images)} images, published are {AWA2_IMAGES}")
    damaged = find_damage(images)
    problems += [f"{images[i]}: {reason}" for i, reason in damaged.items()]
    if damaged:
        write_list(out / f"{name}_damaged.txt", [images[i] for i in damaged])
    return problems


# ---- command line ----------------------------------------------------------------------------------------------------

PLANS = {"imagenet100": plan_imagenet100, "tiny_imagenet": plan_tiny_imagenet, "awa2": plan_awa2}


def get_parser():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = p.add_subparsers(dest="name", required=True)
    folder = dict(type=util.user_path, metavar="FOLDER")
    abouts = {name: plan.__doc__ for name, plan in PLANS.items()} | {"cifar": "CIFAR-10 and CIFAR-100"}
    abouts["clinc150"] = "CLINC150: texts of 150 intents in 10 domains, and out-of-scope texts"

    def add(name, about):
        about = about.split("\n")[0].rstrip(".")
        return kinds.add_parser(name, help=about, description=f"{about}.")

    for name, about in abouts.items():
        k = add(name, about)
        k.add_argument("--out", **folder, default=Path("data"), help="folder of all data sets (default: data)")
        if name == "clinc150":
            files = f"folder of {clinc150.DATA} and {clinc150.DOMAINS} (default: download them)"
            k.add_argument("--from", dest="source", **folder, help=files)
        if name in ("cifar", "clinc150"):
            continue
        flag = "--imagenet" if name == "imagenet100" else "--source"
        k.add_argument(flag, dest="source", **folder, required=True, help="folder of the unpacked download")
        k.add_argument("--copy", action="store_true", help="copy the images instead of linking to them")
        k.add_argument("--check", action="store_true", help="verify classes, counts, splits and every image")
    k = add("pack", "images of each split in one file (train.pack, val.pack), made smaller")
    source = "folder of class folders, image list, or shards, as in training"
    k.add_argument("--data_folder", **folder, required=True, help=source)
    k.add_argument("--out", **folder, required=True, help="folder to write, which is the new --data_folder")
    side = "shorter side in pixels; smaller images keep theirs (default: 256)"
    k.add_argument("--side", type=int, metavar="N", default=256, help=side)
    form = "format of the images; raw needs no decoding and 6 to 9 times the space (default: jpeg)"
    k.add_argument("--format", choices=packed.FORMATS, default="jpeg", help=form)
    listed = "list of images to leave out, one path per line"
    k.add_argument("--skip_images", type=util.user_text, metavar="FILE", help=listed)
    k.add_argument("--check", action="store_true", help="verify every packed image")
    k = add("video", "frames of video files, and their groups: frame, shot, video")
    k.add_argument("source", type=util.user_path, metavar="FOLDER", help="folder of video files, at any depth")
    frames = "folder of frames and groups, which is the new --data_folder (default: data/video)"
    k.add_argument("--out", **folder, default=Path("data/video"), help=frames)
    k.add_argument("--fps", type=float, metavar="X", default=2.0, help="frames to keep per second (default: 2)")
    cut = (
        f"split into shots where the colors of more than this share of pixels change ({videos.SHOT_THRESHOLD} if alone)"
    )
    k.add_argument("--shots", type=float, nargs="?", const=videos.SHOT_THRESHOLD, metavar="P", help=cut)
    held = "share of the videos for validation (default: 0.2)"
    k.add_argument("--val_share", type=float, metavar="P", default=0.2, help=held)
    return p


def main():
    args = get_parser().parse_args()
    util.check_folder(args.out, "--out")
    if args.name == "pack":
        return pack(args.data_folder, args.out, args.side, args.format, args.skip_images, args.check)
    if args.name == "video":
        return videos.prepare(args.source, args.out, args.fps, args.shots, args.val_share)
    if args.name == "cifar":
        for name in ("cifar10", "cifar100"):
            train, test = datasets.build_pair(name, args.out)
            print(f"{name}: {len(train):,} training and {len(test):,} test images in {args.out}")
        return
    if args.name == "clinc150":
        counts = ", ".join(f"{n:,} of {name}" for name, n in clinc150.prepare(args.source, args.out).items())
        print(f"clinc150: {counts} in {args.out / 'clinc150'}; oos_train and oos_val are left out")
        return
    plan = PLANS[args.name](args.source)
    made = carry_out(plan, args.out, args.copy)
    if args.name == "imagenet100":
        link_images(args.out / "imagenet100")
    kind = "copies" if args.copy else "links"
    print(f"{args.name}: {made:,} {kind} made in {args.out}, {len(plan) - made:,} were there")
    if args.check:
        problems = check(plan, args.out, args.name)
        for problem in problems[:20]:
            print(problem, file=sys.stderr)
        if problems:
            more = f", of which {len(problems) - 20} are not shown" if len(problems) > 20 else ""
            raise InputError(f"--check: {len(problems)} problems in {args.out}{more}")
        print("checked: classes, counts, every image, no image in two splits")


if __name__ == "__main__":
    util.run_command(main)
