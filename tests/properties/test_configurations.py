"""A valid configuration with anything in it changed is taken, or refused in ten lines with code 2."""

from __future__ import annotations

import contextlib
import copy
import io
import tempfile
import textwrap
from pathlib import Path
from typing import Any

import yaml
from cli.tiny import DEFAULT, Project
from hypothesis import strategies as st
from properties.amounts import few, many

VALID = yaml.safe_load(textwrap.dedent(DEFAULT)) | {
    "data": {"batch_size": 8, "num_samples": 32},
    "weight_ema": {"decay": 0.9},
    "gradient_clipping": {"max_norm": 1.0},
    "gradient_monitor": {"depth": 1},
}
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 3),
    st.sampled_from([10**20, -(10**20), 0.0, -0.5, 1e308, float("nan"), float("inf"), -float("inf")]),
    st.floats(),
    st.text(max_size=6),
    st.sampled_from(
        ["", "null", "~", "torch.nn.Linear", "torch.nn.Nope", "os.system", "..", "../x", "{{x}}", "${x}", "%s"]
    ),
)
KEYS = st.one_of(st.sampled_from(["class_path", "init_args", "lr"]), st.text(max_size=4))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(KEYS, inner, max_size=2)),
    max_leaves=4,
)
WAYS = st.sampled_from(["set", "drop", "rename", "add"])
CHANGES = st.lists(st.tuples(st.integers(0, 10**6), WAYS, VALUES), min_size=1, max_size=3)


def places(value: Any) -> list[tuple[dict[str, Any], str]]:
    found = []
    for key, inner in value.items():
        found.append((value, key))
        found += places(inner) if isinstance(inner, dict) else []
    return found


def changed(changes: list[tuple[int, str, Any]]) -> dict[str, Any]:
    config = copy.deepcopy(VALID)
    for where, how, value in changes:
        here = places(config)
        if not here:
            break
        owner, key = here[where % len(here)]
        if how == "set":
            owner[key] = value
        elif how == "add":
            owner["extra"] = value
        else:
            old = owner.pop(key)
            if how == "rename":
                owner[f"{key}x"] = old
    return config


def law(changes: list[tuple[int, str, Any]]) -> None:
    config = changed(changes)
    config.pop("cpu_threads", None)  # of this process
    said = io.StringIO()
    with tempfile.TemporaryDirectory() as folder:
        project = Project(Path(folder))
        project.write("mutant.yaml", yaml.safe_dump(config, allow_unicode=True))
        try:
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
                project.run("--config", str(Path(folder) / "mutant.yaml"), run=False)
        except SystemExit as ended:
            assert ended.code == 2, said.getvalue()
            told = said.getvalue()[said.getvalue().index("error: ") :]
            assert len(told.strip().splitlines()) <= 10, told
            assert "Traceback" not in told
        assert [path.name for path in Path(folder).iterdir()] == ["mutant.yaml"], "something was left behind"


test_taken_or_refused = few(law, CHANGES, examples=15)
test_taken_or_refused_at_length = many(law, CHANGES, examples=300)
