"""The same generated images in the forms that datasets.shards reads."""

import io
import json
import shutil
import tarfile
import zipfile

import numpy as np
from made_data import make_image_folders
from PIL import Image

from datasets import decoding

CLASSES = ["cat", "dog", "eel"]
FORMS = ["parquet", "tar", "tar of folders", "zip", "list"]


def make_all(root):
    """The same images as a folder, `mine`, and in each form of FORMS, in folders of these names."""
    for split, each in (("train", 6), ("val", 3)):
        make_image_folders(root / "mine" / split, CLASSES, each)
    turned = Image.Exif()
    turned[decoding.ORIENTATION] = 6
    odd = Image.open(root / "mine/train/dog/dog_1.JPEG").convert("RGB")
    odd.save(root / "mine/train/dog/dog_1.JPEG", exif=turned)
    odd.convert("L").save(root / "mine/train/dog/dog_2.JPEG")
    odd.convert("CMYK").save(root / "mine/train/dog/dog_3.JPEG")
    Image.new("RGBA", (50, 40), (10, 200, 30, 128)).save(root / "mine/train/eel/half.png")
    for form in FORMS:
        write(form, root / "mine", root / form)


def list_images(folder):
    """split, number of the class, file, of each image, in the order of a folder."""
    for split in ("train", "val"):
        for number, name in enumerate(CLASSES):
            yield from ((split, number, file) for file in sorted((folder / split / name).iterdir()))


def write(form, source, out):
    """The images of a folder in another form, several files a split where that has files."""
    out.mkdir()
    images = list(list_images(source))
    if form == "parquet":
        for split, word in (("train", "train"), ("val", "validation")):
            rows = [row for row in images if row[0] == split]
            for i, part in enumerate((rows[:7], rows[7:])):
                write_parquet(out / f"data/{word}-0000{i}-of-00002.parquet", part)
    elif form == "tar":
        for split in ("train", "val"):
            rows = [row for row in images if row[0] == split]
            for i in range(0, len(rows), 8):
                write_tar(out / f"{split}-{i // 8:06}.tar", labeled(rows[i : i + 8]))
        (out / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    elif form == "tar of folders":
        with tarfile.open(out / "all.tar", "w") as tar:
            tar.add(source, "./photographs")
    elif form == "zip":
        with zipfile.ZipFile(out / "all.zip", "w") as file:
            for i, (*_, image) in enumerate(reversed(images)):
                method = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)[i % 2]
                file.write(image, image.relative_to(source), method)
            file.writestr("__MACOSX/train/cat/._cat_1.JPEG", b"of a desktop")
    else:
        for split in ("train", "val"):
            shutil.copytree(source / split, out / split / "images")
            rows = [(image, number) for of, number, image in images if of == split]
            lines = [
                {"file_name": f"images/{f.parent.name}/{f.name}", "label": CLASSES[c], "text": "x"} for f, c in rows
            ]
            (out / split / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def labeled(rows):
    """(name, content) of a shard's members: image and class number of each key."""
    for _, number, file in rows:
        yield f"{file.stem}{file.suffix.lower()}", file.read_bytes()
        yield f"{file.stem}.cls", str(number).encode()


def write_tar(path, content):
    """A tar of (name, content)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in content:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_parquet(path, rows=(), columns=None, group=4, named=("label",), images=None):
    """A Parquet file in the form of Hugging Face's; columns: of labels, else the rows' class numbers."""
    import pyarrow
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    if images is None:
        images = [{"bytes": f.read_bytes(), "path": f.name} for *_, f in rows]
    columns = columns or {"label": [number for _, number, _ in rows]}
    struct = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    table = pyarrow.table({"image": pyarrow.array(images, struct), **columns})
    features = {name: {"_type": "ClassLabel", "names": CLASSES} for name in named}
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(table, path, row_group_size=group)
    return path


def place_of(made, form):
    """What --data_folder is of a form."""
    return made / form / {"tar of folders": "all.tar", "zip": "all.zip"}.get(form, "")


def shard(path, keys="ab", label="0", seed=0):
    """A tar of noise, an image a key, each of the class `label`."""
    content = []
    for i, key in enumerate(keys, seed):
        content += [(f"{key}.jpg", jpeg(i)), (f"{key}.cls", label.encode())]
    return write_tar(path, content)


def jpeg(seed=0, size=24) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (size, size, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG")
    return out.getvalue()


RUN = "--dataset path --loss_type supcon --model resnet8 --size 32 --batch_size 6 --memorybank_size 12 --exp_name a"
RUN += " --epochs 1 --overwrite"
LAST = "save/SupCon/path_models/a/last.pth"
