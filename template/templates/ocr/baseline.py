"""The number to beat: equal cuts, logistic regression on each. ``python -m`` this module prints it.

The string without its empty margins is cut into three equal parts. So it is told how many digits there are,
and that they are about equally wide, which the network has to find out; it cannot follow gaps that differ.
"""

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from .data import LENGTH, load_strings

WIDTH = 10  # columns of a part, wide enough for a digit and its gaps


def cut(string: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return cuts ``[3, 8 * WIDTH]`` of a string ``[1, 8, W]``, around the middles of three equal parts."""
    inked = np.flatnonzero(string.max(axis=(0, 1)))
    first, last = inked[0], inked[-1] + 1
    middles = first + (last - first) * (np.arange(LENGTH) + 0.5) / LENGTH
    padded = np.pad(string[0], ((0, 0), (WIDTH, WIDTH)))
    begins = np.round(middles - WIDTH / 2).astype(int) + WIDTH
    return np.stack([padded[:, begin : begin + WIDTH].ravel() for begin in begins])


def baseline_error() -> float:
    """Return the share of test digits that a classifier of the cuts gets wrong: a character error rate."""
    (strings, digits), (test_strings, test_digits) = load_strings("train"), load_strings("test")
    cuts, test_cuts = (np.concatenate([cut(string) for string in many]) for many in (strings, test_strings))
    model = LogisticRegression(max_iter=500).fit(cuts, digits.ravel())
    return 1 - float(model.score(test_cuts, test_digits.ravel()))


if __name__ == "__main__":
    print(f"equal cuts and logistic regression: test character error {baseline_error():.4f}")
