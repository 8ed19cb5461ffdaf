"""Lightning's advertisements and warnings that say nothing about the user's run."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


def _is_no_advertisement(record: logging.LogRecord) -> bool:
    return "Tip: For seamless" not in record.getMessage()


@contextmanager
def unsaid() -> Iterator[None]:
    """Leave out all that is no warning, while it lasts."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out, while it lasts, what the reader can do nothing about."""
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    logger.addFilter(_is_no_advertisement)
    try:
        with warnings.catch_warnings():
            # Lightning asks torch about trees in a way that torch has deprecated.
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated")
            # LightningCLI calls jsonargparse by names that jsonargparse has deprecated.
            warnings.filterwarnings(
                "ignore", category=DeprecationWarning, module=r"lightning\.pytorch\.cli|jsonargparse"
            )
            # Evaluation needs no early stopping, and the learning rate's state neither.
            warnings.filterwarnings("ignore", "Be aware that when using `ckpt_path`, callbacks used to create")
            # The samples of a stream are counted instead.
            warnings.filterwarnings("ignore", "Couldn't infer the batch indices fetched from your dataloader")
            yield
    finally:
        logger.removeFilter(_is_no_advertisement)
