"""The far outliers of the digits' recipe."""

from PIL import Image

from recipes import patches


def test_patches_of_photographs_are_gray_squares_and_made_whole(tmp_path):
    (tmp_path / "patches.unfinished").mkdir()
    (tmp_path / "patches.unfinished" / "left_over").touch()
    count = patches.cut_patches(tmp_path / "patches", side=100)
    files = list((tmp_path / "patches").iterdir())
    assert count == len(files) == 2 * 6 * 4
    for file in files:
        with Image.open(file) as picture:
            assert (file.suffix, picture.size, picture.mode) == (".png", (100, 100), "L")
    assert not (tmp_path / "patches.unfinished").exists()
