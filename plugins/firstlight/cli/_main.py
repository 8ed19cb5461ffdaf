"""The ``firstlight`` command: ``explain``, ``check``, ``verify-resume`` and ``report``."""

from __future__ import annotations

import argparse
import io
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from firstlight import __version__
from firstlight.cli._check_options import Checking, add_options
from firstlight.cli._errors import UsageError


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message, f"{self.prog} --help says what there is")


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run one command and end with its code: 0 clean, 1 findings, 2 usage, 3 a check failed itself, 4 budget spent."""
    try:
        parser = _parser()
        words = list(sys.argv[1:] if args is None else args)
        end = words.index("--") if "--" in words else len(words)  # what follows is a script's own
        asked, further = parser.parse_known_args(words[:end])
        if words[end:] and asked.run is not _check:
            parser.error("-- stands before the arguments of a script, in: check SCRIPT -- ARGUMENTS")
        asked.script_words = words[end + 1 :]
        if further and asked.run is not _verify_resume:
            parser.error(f"unrecognized arguments: {' '.join(further)}")
        asked.further = further
        code = asked.run(asked)
    except UsageError as error:
        sys.stderr.write(f"error: {error}\n")
        code = error.code
    raise SystemExit(code)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        "firstlight", description="Ask whether a set-up can learn, and what an answer means.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    explain = commands.add_parser(
        "explain", help="what a check asks and why; without a code, all checks", allow_abbrev=False
    )
    explain.add_argument("code", nargs="?", help="such as FL302")
    explain.set_defaults(run=_explain)

    check = commands.add_parser("check", help="can this module learn on this data?", allow_abbrev=False)
    which = "the module: package.module:Name or path/to/file.py:Name; or a script that calls trainer.fit: train.py"
    check.add_argument("target", metavar="TARGET", help=which)
    check.add_argument("--data", metavar="TARGET", help="a LightningDataModule or loader; default: the module's own")
    add_options(check)
    check.set_defaults(run=_check)

    verify = commands.add_parser(
        "verify-resume",
        help="is a run of this module that is stopped and goes on the run that was never stopped?",
        epilog="further options are those of a project: --config FILE, --model.KEY, --data.KEY, --trainer.KEY, "
        "--steps N, --stop_at N",
        allow_abbrev=False,
    )
    verify.add_argument("target", metavar="TARGET", help="a LightningModule, or a function that returns one")
    verify.add_argument("--data", metavar="TARGET", help="a LightningDataModule; default: the module's own loaders")
    verify.set_defaults(run=_verify_resume)

    report = commands.add_parser("report", help="show reports that lie in a run's folder", allow_abbrev=False)
    report.add_argument("folder", metavar="RUN_FOLDER", type=Path)
    report.add_argument(
        "--format", choices=("text", "html"), default="text", help="html shows the newest (default: text)"
    )
    report.add_argument("--output", metavar="FILE", type=Path, help="write to a file")
    report.add_argument("--all", action="store_true", help="print every finding in full")
    report.set_defaults(run=_report)
    return parser


def _explain(asked: argparse.Namespace) -> int:
    from firstlight.cli._codes import explained, listed

    sys.stdout.write(f"{explained(asked.code) if asked.code else listed()}\n")
    return 0


def _check(asked: argparse.Namespace) -> int:
    options = Checking.of(vars(asked))
    from firstlight.cli._checking import check
    from firstlight.cli._target import built

    if asked.target.endswith(".py"):
        from firstlight.cli._script import arguments_of_fit

        if asked.data:
            raise UsageError("--data goes with a module; a script has its own", f"{asked.target}:Name is a module")
        trainer, module, data = arguments_of_fit(asked.target, asked.script_words)
        return check(module, data, trainer=trainer, asked=options)[1]
    if asked.script_words:
        raise UsageError(f"{asked.target} is no script, and takes no arguments", "a script's name ends in .py")
    module = built(asked.target, "TARGET")
    data = built(asked.data, "--data") if asked.data else None
    return check(module, data, trainer=None, asked=options)[1]


def _verify_resume(asked: argparse.Namespace) -> NoReturn:
    # A program of its own: each training of a verification starts it anew.
    sys.argv[1:] = [asked.target, asked.data or "", "verify-resume", *asked.further]
    runpy.run_module("firstlight.cli._of_targets", run_name="__main__", alter_sys=True)
    raise SystemExit(0)


def _report(asked: argparse.Namespace) -> int:
    from firstlight.cli._kept_reports import reports_in

    found = reports_in(asked.folder)
    path, newest = found[-1]
    if asked.format == "html":
        text = newest.to_html()
        sys.stderr.write(f"report: {path}, the newest of {len(found)}\n")
    else:
        said = io.StringIO()
        for file, report in found:
            said.write(f"{file}\n\n")
            report.print(said, show_all=asked.all)
        text = said.getvalue()
    if asked.output:
        asked.output.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)
    return 0
