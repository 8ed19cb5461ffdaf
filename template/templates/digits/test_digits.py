"""The split is what it says."""

import numpy as np
import pytest

from {{ cookiecutter.package_name }} import digits


def test_every_image_is_in_one_part() -> None:
    manifest = digits.load_manifest()
    rows = manifest["train"] + manifest["val"] + manifest["test"]
    assert sorted(rows) == list(range(1797))


def test_every_part_has_every_digit_in_the_same_share() -> None:
    for images, labels in digits.load_split().values():
        assert images.shape[1:] == (1, 8, 8)
        assert images.min() >= 0
        assert images.max() <= 1
        share = np.bincount(labels, minlength=digits.NUM_CLASSES) / len(labels)
        assert np.abs(share - 0.1).max() < 0.015


def test_other_data_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = digits.load_manifest() | {"sha256": "0" * 64}
    monkeypatch.setattr(digits, "load_manifest", lambda: manifest)
    with pytest.raises(ValueError, match="was made for 000"):
        digits.load_split()
