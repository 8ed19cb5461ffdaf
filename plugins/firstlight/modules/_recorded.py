"""Record a constructor call in plain values, and accept such a record in place of objects."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters

from firstlight._spec import build_nested, spec_of


def recorded(init: Callable[..., None]) -> Callable[..., None]:
    """Wrap ``init`` so that its arguments become ``self.hparams`` as specs, and specs among them become objects.

    Of nested constructors only the outermost, the call that the user wrote, is recorded: ``load_from_checkpoint``
    repeats that one. Under LightningCLI the record is the configuration that the objects were made from.
    """
    signature = inspect.signature(init)

    @functools.wraps(init)
    def construct(self: Any, *args: Any, **kwargs: Any) -> None:
        if "_recording" in self.__dict__:
            init(self, *args, **kwargs)
            return
        self.__dict__["_recording"] = True
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        record = _flat(signature, bound.arguments)
        init(self, *args_built(args), **{name: build_nested(value, name=name) for name, value in kwargs.items()})
        given = _given_hyperparameters.get()
        if given is not None:
            record = {key: value for key, value in given.items() if not key.startswith("_")}
        self.save_hyperparameters({name: spec_of(value) for name, value in record.items()})
        del self.__dict__["_recording"]

    return construct


def args_built(args: tuple[Any, ...]) -> list[Any]:
    return [build_nested(value, name=f"argument {position}") for position, value in enumerate(args, start=1)]


def _flat(signature: inspect.Signature, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return bound arguments without ``self``, with ``**kwargs`` unpacked."""
    flat: dict[str, Any] = {}
    for index, (name, value) in enumerate(arguments.items()):
        kind = signature.parameters[name].kind
        if index == 0 or kind is inspect.Parameter.VAR_POSITIONAL:
            continue
        flat.update(value if kind is inspect.Parameter.VAR_KEYWORD else {name: value})
    return flat
