"""Sources, folders, held-out classes and augmentation."""

import gzip
import math
import struct

import numpy as np
import pytest
import torch
from made_data import make_cifar10, make_cifar100, make_image_folders, make_tiny_imagenet
from PIL import Image

import datasets
from datasets import Selection, augmentation
from util import InputError


def test_digits_split_every_class_four_to_one():
    train, test = datasets.build("digits"), datasets.build("digits", split="test")
    assert len(train) + len(test) == 1797
    assert train.classes == [str(c) for c in range(10)]
    for c in range(10):
        share = (test.labels == c).sum() / ((train.labels == c).sum() + (test.labels == c).sum())
        assert 0.19 <= share <= 0.2


def test_held_out_classes_leave_images_and_close_the_gaps_in_the_labels():
    whole, part = datasets.build("digits"), datasets.build("digits", which=Selection(exclude=("4", "8")))
    assert part.classes == ["0", "1", "2", "3", "5", "6", "7", "9"]
    for name in part.classes:
        kept = part.images[(part.labels == part.classes.index(name)).numpy()]
        assert np.array_equal(kept, whole.images[(whole.labels == whole.classes.index(name)).numpy()])


@pytest.mark.parametrize("per_class", [1, 7, 138])
def test_so_many_images_of_each_class_are_spread_evenly_over_its_images(per_class):
    whole, part = datasets.build("digits"), datasets.select_per_class(datasets.build("digits"), per_class)
    assert part.classes == whole.classes
    for label in range(10):
        of_class = [i for i in range(len(whole)) if whole.labels[i] == label]
        wanted = [of_class[math.floor(j * len(of_class) / per_class)] for j in range(per_class)]
        assert np.array_equal(part.images[(part.labels == label).numpy()], whole.images[wanted])
    assert len(part) == 10 * per_class


@pytest.mark.parametrize("shape", [(5, 8, 8), (5, 8, 8, 3)], ids=["gray", "RGB"])
@pytest.mark.parametrize("size", [8, 6])
def test_images_in_memory_taken_at_once_are_those_taken_one_by_one_to_the_bit(shape, size):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    transform, seen = augmentation.evaluation(size, (0.3, 0.4, 0.5), (0.2, 0.3, 0.4), small=True), []
    data = datasets.ImageData(pixels, torch.tensor([3, 1, 2, 0, 4]), list("abcde"), transform)
    transform.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    together = data.__getitems__([4, 0, 4])
    assert len(seen) == (1 if size == 8 else 3)  # one that is resized goes through PIL
    for (view, label), i in zip(together, [4, 0, 4], strict=True):
        assert torch.equal(view, data[i][0])
        assert (label, type(label)) == (data[i][1], int)


def test_reading_an_image_takes_no_longer_in_a_large_data_set():
    """Where damage is tolerated the others are candidates; a list of a million million of them would fit nowhere."""

    class Large(datasets.ImageData):
        def __len__(self):
            return 10**12

    data = Large(np.zeros((3, 8, 8), np.uint8), torch.tensor([0, 1, 0]), ["a", "b"], bad=torch.tensor([False] * 3))
    assert data.readable(1, lambda i: i) == (1, 1)


def test_a_subset_is_of_the_classes_that_are_kept_and_leaves_validation_whole():
    train, test = datasets.build_pair("digits", which=Selection(exclude=("4", "8"), per_class=5))
    assert torch.bincount(train.labels).tolist() == [5] * 8
    assert len(test) == len(datasets.build("digits", split="test", which=Selection(exclude=("4", "8"))))


@pytest.mark.parametrize(
    ("name", "which", "reason"),
    [
        ("digit", Selection(), "choose one of digits, fashion_mnist"),
        ("digits", Selection(exclude=("eleven",)), "--exclude_classes eleven"),
        ("digits", Selection(exclude=tuple("0123456789")), "--exclude_classes: leaves no class of digits"),
        ("digits", Selection(per_class=141), "--images_per_class 141: class 8 has only 140 images"),
    ],
)
def test_a_selection_that_cannot_be_is_named(name, which, reason):
    with pytest.raises(InputError, match=reason):
        datasets.build(name, which=which)


def test_cifar100_is_read_from_files_in_its_own_format(tmp_path):
    make_cifar100(tmp_path, train=120, test=100)
    data = datasets.build("cifar100", tmp_path)
    assert (len(data), data.image(0).size, len(data.classes)) == (120, (32, 32), 100)
    assert data.classes == sorted(data.classes)
    assert len(datasets.build("cifar100", tmp_path, "test")) == 100


def test_cifar10s_test_images_alone_are_outliers_and_no_training_set(tmp_path):
    make_cifar10(tmp_path, train=10, test=30)
    for path in (tmp_path / "cifar-10-batches-py").glob("data_batch_*"):
        path.unlink()
    assert len(datasets.build_outliers("cifar10", tmp_path)) == 30
    with pytest.raises(InputError, match="holds no cifar-10-batches-py, and the download failed"):
        datasets.build("cifar10", tmp_path, "train")


@pytest.mark.parametrize("zipped", [True, False])
def test_fashion_mnist_is_read_from_idx_files_zipped_or_not(tmp_path, zipped):
    images = np.arange(2 * 28 * 28, dtype=np.uint32).astype(np.uint8).reshape(2, 28, 28)
    pack = gzip.compress if zipped else bytes
    end = ".gz" if zipped else ""
    header = struct.pack(">4B3I", 0, 0, 8, 3, 2, 28, 28)
    (tmp_path / f"train-images-idx3-ubyte{end}").write_bytes(pack(header + images.tobytes()))
    header = struct.pack(">4BI", 0, 0, 8, 1, 2)
    (tmp_path / f"train-labels-idx1-ubyte{end}").write_bytes(pack(header + bytes([3, 9])))
    data = datasets.build("fashion_mnist", tmp_path)
    assert data.labels.tolist() == [3, 9]
    assert np.array_equal(np.asarray(data.image(1))[..., 0], images[1])


def test_any_folder_of_class_folders_serves_for_training_and_says_what_evaluation_lacks(tmp_path):
    make_image_folders(tmp_path, ["a", "b"], each=2)
    assert len(datasets.build("path", tmp_path)) == 4
    with pytest.raises(InputError, match="has no folder val"):
        datasets.build("path", tmp_path, "test")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda p: None, "no such folder"),
        (lambda p: p.mkdir(), "empty"),
        (lambda p: (p / "cats").mkdir(parents=True), "class folder cats holds no image"),
    ],
)
def test_a_folder_that_cannot_serve_is_named_with_its_fault(tmp_path, make, reason):
    make(tmp_path / "x")
    with pytest.raises(InputError, match=reason) as error:
        datasets.build("path", tmp_path / "x")
    assert f"--data_folder {tmp_path / 'x'}" in str(error.value)


def test_mean_and_std_are_estimated_from_the_images(tmp_path):
    make_image_folders(tmp_path, ["a", "b"], each=3, size=(16, 16))
    data = datasets.build("path", tmp_path)
    pixels = np.stack([np.asarray(data.image(i)) for i in range(len(data))]) / 255
    views = datasets.estimate_normalization(data)
    assert views.mean == pytest.approx(pixels.mean((0, 1, 2)))
    assert views.std == pytest.approx(pixels.std((0, 1, 2)))


def test_views_are_as_given_else_as_the_weights_want_else_as_known_of_the_data_set():
    weights, digits = datasets.ViewSettings(224, (0.5,) * 3, (0.2,) * 3), datasets.build("digits")
    given = datasets.ViewSettings(size=32).fill_from(weights)
    assert given == datasets.ViewSettings(32, (0.5,) * 3, (0.2,) * 3)
    assert datasets.complete_views("digits", given, digits) == given
    assert datasets.complete_views("digits", datasets.ViewSettings(), digits) == datasets.spec("digits").views


def test_evaluation_resizes_to_256_for_224_and_takes_the_center():
    image = Image.new("RGB", (600, 300))
    image.paste((255, 0, 0), (150, 0, 450, 300))  # the center square
    out = augmentation.evaluation(224, (0, 0, 0), (1, 1, 1), small=False)(image)
    assert out.shape == (3, 224, 224)
    assert out[0].min() > 0.99
    assert out[1].max() == 0


def test_a_small_image_is_evaluated_whole_and_untouched():
    pixels = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    out = augmentation.evaluation(8, (0, 0, 0), (1, 1, 1), small=True)(Image.fromarray(pixels))
    torch.testing.assert_close(out, torch.tensor(pixels).permute(2, 0, 1) / 255)


def test_validation_has_the_class_numbers_of_training_though_it_lacks_classes(tmp_path):
    make_image_folders(tmp_path / "train", ["bee", "cow", "dog"], each=1)
    make_image_folders(tmp_path / "val", ["dog", "cow"], each=2)
    train, test = datasets.build_pair("path", tmp_path)
    assert train.classes == test.classes == ["bee", "cow", "dog"]
    assert test.labels.tolist() == [1, 1, 2, 2]
    _, test = datasets.build_pair("path", tmp_path, which=Selection(exclude=("bee",)))
    assert (test.classes, test.labels.tolist()) == (["cow", "dog"], [0, 0, 1, 1])


def test_outliers_are_val_where_there_is_one_else_the_whole_folder(tmp_path):
    make_image_folders(tmp_path / "split" / "train", ["a"], each=3)
    make_image_folders(tmp_path / "split" / "val", ["a", "b"], each=2)
    make_image_folders(tmp_path / "whole", ["x", "y"], each=2)
    assert len(datasets.build_outliers("imagenet", tmp_path / "split")) == 4
    assert len(datasets.build_outliers("imagenet", tmp_path / "split", "train")) == 3
    assert len(datasets.build_outliers("imagenet", tmp_path / "split", "all")) == 7
    assert datasets.build_outliers("path", tmp_path / "split", classes=("b",)).labels.tolist() == [0, 0]
    assert len(datasets.build_outliers("AwA2", tmp_path / "whole")) == 4
    assert len(datasets.build_outliers("path", tmp_path / "whole" / "x")) == 2


@pytest.mark.parametrize("home", ["", "train", "val"])
@pytest.mark.parametrize("split", ["train", "test", "all"])
def test_outliers_of_a_class_lie_at_any_depth_as_in_training(tmp_path, home, split):
    for place, name in (("", "gnu"), ("gnu", "young"), ("gnu/young", "very"), ("elk", "young")):
        make_image_folders(tmp_path / home / place, [name], each=2)
    assert datasets.build("path", tmp_path / home).classes == ["elk", "gnu"]
    outliers = datasets.build_outliers("path", tmp_path, split, classes=("gnu",))
    assert len(outliers) == 6
    assert all("/gnu/" in image for image in outliers.images)
    assert datasets.build_outliers("path", tmp_path, split).classes == ["elk", "gnu"]
    assert datasets.build_outliers("path", tmp_path / home / "elk/young", split).classes == ["young"]


def test_packs_of_two_splits_are_no_outliers_of_all(tmp_path):
    for name in ("train", "val"):
        (tmp_path / f"{name}.pack").touch()
    with pytest.raises(InputError, match=r"train\.pack is a packed split; give --outlier_split train or test"):
        datasets.build_outliers("path", tmp_path, "all")


def test_outliers_of_both_splits_keep_their_classes():
    both = datasets.build_outliers("digits", split="all", classes=("8", "4"))
    assert both.classes == ["8", "4"]
    whole = datasets.build_outliers("digits", split="all")
    assert len(whole) == 1797
    for name in both.classes:
        mine, of_all = both.labels == both.classes.index(name), whole.labels == whole.classes.index(name)
        assert (both.images[mine.numpy()] == whole.images[of_all.numpy()]).all()


def test_tiny_imagenet_is_read_as_downloaded_and_with_sorted_validation(tmp_path):
    make_tiny_imagenet(tmp_path, ["n01", "n02"], each=2)
    test = datasets.build("tiny_imagenet", tmp_path, "test")
    assert (test.classes, test.labels.tolist()) == (["n01", "n02"], [0, 1, 0, 1])
    folder = tmp_path / "tiny-imagenet-200" / "val"
    rows = [line.split("\t") for line in (folder / "val_annotations.txt").read_text().splitlines()]
    for name, wnid, *_ in rows:
        (folder / wnid).mkdir(exist_ok=True)
        (folder / "images" / name).rename(folder / wnid / name)
    with pytest.raises(InputError, match=r"val_annotations\.txt: names"):
        datasets.build("tiny_imagenet", tmp_path, "test")
    (folder / "val_annotations.txt").unlink()
    (folder / "images").rmdir()
    assert datasets.build("tiny_imagenet", tmp_path / "tiny-imagenet-200", "test").labels.tolist() == [0, 0, 1, 1]
    assert len(datasets.build("tiny_imagenet", tmp_path, "train")) == 4
