"""The command line of a project."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from jsonargparse.typing import PositiveFloat, PositiveInt
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.model_helpers import is_overridden

from firstlight.cli._blame import blame, passed_through, refused
from firstlight.cli._check_options import Checking, add_options
from firstlight.cli._checking import check
from firstlight.cli._checkpoints import Checkpoint, best_in, load_weights, refusal
from firstlight.cli._config_files import ConfigFiles, words
from firstlight.cli._csv_logger import RunCSVLogger
from firstlight.cli._errors import FailedRun, UsageError
from firstlight.cli._explain import Explainer
from firstlight.cli._export_formats import ExportFormat
from firstlight.cli._exporting import EXPORT_TRAINER, FirstBatch, export
from firstlight.cli._imports import only_from
from firstlight.cli._lone_node import refuse_lone_node
from firstlight.cli._model_card import write_model_card
from firstlight.cli._numbers import refuse_senseless_numbers
from firstlight.cli._parser import FirstlightParser, ParseError
from firstlight.cli._plain_values import plain_values
from firstlight.cli._predictions import PredictionWriter
from firstlight.cli._quiet import quiet, unsaid
from firstlight.cli._record import RunRecord
from firstlight.cli._run_folder import new_run_folder, run_folder_of, shared_with_children
from firstlight.cli._say import say, short
from firstlight.cli._secret_free import SecretFreeCheckpointIO
from firstlight.cli._slots import SLOTS
from firstlight.cli._table_files import TableFormat, check_format
from firstlight.cli._trained_with import trained_with
from firstlight.cli._tune import tune
from firstlight.cli._tune_options import Tuning
from firstlight.cli._tune_options import add_options as add_tune_options
from firstlight.cli._tune_reporter import reporters
from firstlight.cli._verify import verify_resume
from firstlight.cli._verify_options import Verifying
from firstlight.cli._verify_options import add_options as add_verify_options
from firstlight.cli._verify_recorder import recorders
from firstlight.cli._which_checkpoint import WhichCheckpoint, tell_resume
from firstlight.recovery import CheckpointWriteError, DamagedCheckpointError, GracefulStop, VerifiedCheckpointIO
from firstlight.tracking import SafeWandbLogger, plot_run, redact

# How this command goes, not what the run is: left out of config.yaml, so that every subcommand can read it.
_COMMAND_KEYS = ("config", "resume", "init_from", "ckpt_path", "verbose", "format", "tolerance")
_OF_TRAININGS = ("tune", "verify-resume")  # each training of these is a fit of its own
_EVALUATIONS = ("validate", "test", "predict", "export")  # each of a checkpoint, into a folder of its run
_EXPORT = "Write the model of a checkpoint as files that need no code of the project, and compare them with it."
_CHECK = "Ask of copies whether this set-up can learn, and say why not."
_VERIFY = "Train, stop, resume, and say whether that is bit for bit the run that was never stopped."
_TUNE = "Search for better values in the order of the tuning priorities."
_DESCRIPTION = "Train a model, and see what it is worth. Each command has its own --help."


class FirstlightCLI(LightningCLI):
    """The command line of a project: ``fit validate test predict export check verify-resume tune``.

    A thin LightningCLI: the project's ``configs/default.yaml`` lies under every ``--config``; callbacks and
    loggers have named places that take plain keys or null; a run has one folder, ``<runs_dir>/<run_name>/<id>``;
    a mistake is told in at most ten lines and ends with code 2. ``check`` is a preflight of what ``fit`` would
    train; it leaves no run folder.

    Args:
        model_class: The LightningModule, or a callable that returns one.
        datamodule_class: The LightningDataModule, or a callable that returns one.
        project_root: The folder that holds ``configs`` and ``runs``; the working directory when left out.
        args: Arguments to read in place of the command line.
        allowed_packages: Packages that a configuration may name classes of, beside the project's own, ``firstlight``,
            ``lightning``, ``torch`` and ``torchmetrics``. Any other name is refused before it is imported.
        **kwargs: LightningCLI's own arguments.

    Raises:
        SystemExit: With code 2 for a mistake in the command line, a configuration file or a value in them; from
            ``check`` with the code of the report, unless it is 0.
    """

    def __init__(
        self,
        model_class: type[LightningModule] | Callable[..., LightningModule] | None = None,
        datamodule_class: type[LightningDataModule] | Callable[..., LightningDataModule] | None = None,
        *,
        project_root: str | os.PathLike[str] | None = None,
        args: ArgsType = None,
        allowed_packages: Iterable[str] = (),
        **kwargs: Any,
    ) -> None:
        self.project_root = Path(project_root or Path.cwd()).resolve()
        self.config_files = ConfigFiles(self.project_root)
        self.run_folder = self.project_root  # set by _choose_run_folder
        self.subcommand: str | None = None
        self._resumes: Checkpoint | None = None
        self._evaluates: Checkpoint | None = None
        # A named seed: Lightning would take the same one, with a warning.
        kwargs.setdefault("seed_everything_default", 0)
        kwargs.setdefault("parser_class", FirstlightParser)
        kwargs["parser_kwargs"] = {
            "allow_abbrev": False,
            "description": _DESCRIPTION,
            **(kwargs.get("parser_kwargs") or {}),
        }
        try:
            with quiet(), only_from([*_packages_of(model_class, datamodule_class), *allowed_packages]):
                super().__init__(
                    model_class,
                    datamodule_class,
                    save_config_callback=None,  # it refuses a folder that holds one; RunRecord writes it
                    auto_configure_optimizers=False,  # it builds the optimizer before the model is sharded
                    args=args,
                    **kwargs,
                )
        except UsageError as error:
            if getattr(rank_zero_only, "rank", 0) == 0:
                sys.stderr.write(f"error: {error}\n")
            raise SystemExit(error.code) from None

    # Arguments

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's subcommands; which checkpoint they load is our own argument."""
        return {
            name: skip | {"ckpt_path", "weights_only", "return_predictions"}
            for name, skip in LightningCLI.subcommands().items()
        }

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the run's name and folder, and the named places; ``add_arguments_to_parser`` stays the project's."""
        super().add_core_arguments_to_parser(parser)
        import_module("firstlight.schedules")  # so that a schedule can be given by its bare name
        parser.add_argument("--run_name", type=str | None, help="Name of the run (default: the project's folder)")
        parser.add_argument("--runs_dir", type=str, default="runs", help="Where runs are kept, seen from the project")
        threads = "Threads of torch on the CPU (default: its own choice); a small model is fastest with 1"
        parser.add_argument("--cpu_threads", type=PositiveInt | None, help=threads)
        for name, slot in SLOTS.items():
            kind = slot.target | None
            parser.add_argument(f"--{name}", type=kind, default={} if slot.on else None, help=slot.help)

    def _add_subcommands(self, parser: LightningArgumentParser, **kwargs: Any) -> None:
        """Add ``check``, ``export``, ``tune`` and ``verify-resume``, which are no methods of the Trainer."""
        super()._add_subcommands(parser, **kwargs)
        export = self._added(parser, "export", _EXPORT)
        export.add_argument("--ckpt_path", type=str | None, help="best, last, or a checkpoint (default: best)")
        export.add_argument("--format", type=ExportFormat | None, help="pt2 or onnx (default: all that are installed)")
        export.add_argument("--tolerance", type=PositiveFloat, default=1e-4, help="Largest difference from the model")
        add_options(self._added(parser, "check", _CHECK), underscores=True)
        add_tune_options(self._added(parser, "tune", _TUNE))
        add_verify_options(self._added(parser, "verify-resume", _VERIFY))

    def _added(self, parser: LightningArgumentParser, name: str, description: str) -> LightningArgumentParser:
        own = self.init_parser(description=description)
        self._add_arguments(own)
        self._subcommand_parsers[name] = own
        assert parser._subcommands_action is not None
        parser._subcommands_action.add_subcommand(name, own, help=description)
        return own

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "fit":
            parser.add_argument("--resume", type=str | None, help="Go on with a run: auto, last, or a checkpoint")
            parser.add_argument("--init_from", type=str | None, help="Start a new run with a checkpoint's weights")
        else:
            parser.add_argument("--ckpt_path", type=str | None, help="best, last, or a checkpoint (default: best)")
        if subcommand == "predict":
            parser.add_argument("--format", type=TableFormat, default="csv", help="Of the table: csv or parquet")
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Read the configuration: class defaults < default.yaml < the evaluated run < --config files < arguments."""
        argv = words(args)
        for name, subparser in getattr(self, "_subcommand_parsers", {}).items():
            subparser.short_help_of = name if "--help_all" not in argv else None
        self._argv = argv = ["--help" if word == "--help_all" else word for word in argv]
        names = list(getattr(self, "_subcommand_parsers", {}))
        self.config = self._parsed(parser, self.config_files.prepare(argv, names))
        self.subcommand = self.config.get("subcommand")
        if self.subcommand in _EVALUATIONS:
            self._evaluates = self._which.to_evaluate(self._get_plain("ckpt_path") or "best", self.subcommand)
            under = json.dumps(trained_with(self._evaluates.path))
            self.config = self._parsed(parser, self.config_files.prepare(argv, names, under))
        locate = self.config_files.locate
        refuse_senseless_numbers(self._plain_config(), lambda key: locate(key, self.subcommand, self._argv))

    def _read(self, argv: list[str]) -> dict[str, Any]:
        """Return the configuration of a command line that is not this one."""
        config = self._parsed(self.parser, self.config_files.prepare(argv, self._subcommand_parsers))
        plain: dict[str, Any] = redact(plain_values(self._parser(config["subcommand"]), config[config["subcommand"]]))
        return {key: value for key, value in plain.items() if key not in _COMMAND_KEYS}

    def _parsed(self, parser: LightningArgumentParser, argv: list[str]) -> Any:
        try:
            return parser.parse_args(argv)
        except ParseError as error:
            command = next((word for word in argv if word in getattr(self, "_subcommand_parsers", {})), None)
            known = tuple(action.dest for action in self._parser(command)._actions)
            raise Explainer(known, lambda key: self.config_files.locate(key, command, argv))(str(error)) from None

    def _parse_ckpt_path(self) -> None:
        """Lightning lets a checkpoint's hyperparameters override the configuration; here the configuration wins."""

    def _get_plain(self, key: str) -> Any:
        return self._get(self.config, key)

    @property
    def _runs(self) -> Path:
        return self.project_root / Path(self._get_plain("runs_dir")).expanduser() / self._run_name

    @property
    def _run_name(self) -> str:
        return str(self._get_plain("run_name") or self.project_root.name)

    @property
    def _which(self) -> WhichCheckpoint:
        return WhichCheckpoint(self._runs, (Path.cwd(), self.project_root))

    @property
    def _is_dry(self) -> bool:
        return bool(self._get_plain("trainer").get("fast_dev_run"))

    # From configuration to objects

    def before_instantiate_classes(self) -> None:
        """Choose the run's folder, and fit the configuration to what this subcommand does."""
        if self.subcommand in _OF_TRAININGS:
            return
        self.run_config = redact(self._plain_config())
        if self._get_plain("cpu_threads"):
            torch.set_num_threads(self._get_plain("cpu_threads"))
        stage = self.subcommand or "fit"
        if stage == "predict":
            check_format(self._get_plain("format"))
        config = self.config[self.subcommand] if self.subcommand else self.config
        if stage == "export":
            for key, value in EXPORT_TRAINER.items():
                config["trainer"][key] = value
        self._choose_run_folder(stage)
        for name, slot in SLOTS.items():
            if stage not in slot.stages:
                config[name] = None
        if config.get("init_from"):
            config["weight_initialization"] = None
        if config.get("wandb") is not None:
            self._place_wandb(config["wandb"], stage)

    def _plain_config(self) -> dict[str, Any]:
        config = self.config[self.subcommand] if self.subcommand else self.config
        plain = plain_values(self._parser(self.subcommand), config)
        return {key: value for key, value in plain.items() if key not in _COMMAND_KEYS}

    def _choose_run_folder(self, stage: str) -> None:
        resume, init_from = self._get_plain("resume"), self._get_plain("init_from")
        for option, value in (("--resume", resume), ("--init_from", init_from)):
            if value is not None and not str(value).strip():  # as of a variable of the shell that is not set
                raise UsageError(f"{option} is empty", "leave it out to start anew")
        if resume and init_from:
            raise UsageError(
                "--resume and --init_from exclude each other",
                "--resume goes on with a run; --init_from starts a new one with a checkpoint's weights",
            )
        if init_from:
            self._init_from = self._which.named(init_from)
        if resume:
            self._resumes = self._which.to_resume(resume)
        if self._is_dry:
            self.run_folder = Path(tempfile.mkdtemp(prefix="firstlight-"))
            return
        found = self._resumes or self._evaluates
        folder = run_folder_of(found.path) if found else None
        there = next(place for place in (self._runs, *self._runs.parents) if place.exists())
        if not there.is_dir():
            raise UsageError(f"runs_dir must be a folder, there or to be made; {there} is none")
        try:
            self.run_folder = folder or new_run_folder(self._runs.parent, self._run_name)
        except ValueError as error:
            raise UsageError(str(error)) from None
        if resume:
            tell_resume(self._resumes, folder, self._runs, self.run_config)
        if stage in _EVALUATIONS:
            self.run_folder /= stage

    def _place_wandb(self, wandb: Any, stage: str) -> None:
        """Put W&B's files into the run folder, the attempts of a run into one group, and online into one W&B run."""
        run = self.run_folder.parent if stage != "fit" else self.run_folder
        attempts = len(list((self.run_folder / "wandb").glob("*run-[0-9]*"))) if self._resumes else 0
        attempt = f"resume-{attempts}" if attempts else ""
        values = {
            "save_dir": str(self.run_folder),
            "name": "-".join(part for part in (self._run_name, run.name, attempt) if part),
            "group": run.name,
            "job_type": attempt or stage,
        }
        if stage == "fit":
            values["version"] = run.name  # W&B's id of the run: the same when it goes on
        for key, value in values.items():
            if wandb[key] in (None, "."):
                wandb[key] = value

    def instantiate_classes(self) -> None:
        """Build everything; a value that a constructor refuses is a mistake in the configuration."""
        if self.subcommand in _OF_TRAININGS:
            return
        try:
            # Lightning still calls the older name, which warns.
            instantiate = getattr(self.parser, "instantiate", None) or self.parser.instantiate_classes
            self.config_init = instantiate(self.config)
            self.datamodule = self._get(self.config_init, "data")
            self.model = self._get(self.config_init, "model")
            self.trainer = self.instantiate_trainer()
            if self._get_plain("init_from"):
                if is_overridden("configure_model", self.model):
                    self.model.configure_model()
                load_weights(self.model, self._init_from)
                say(f"weights from {short(self._init_from)}")
        except (ValueError, TypeError, MisconfigurationException) as error:
            raise self._blamed(error) from error

    def _blamed(self, error: Exception) -> UsageError:
        roots = {slot.address: name for name, slot in SLOTS.items()}
        for key, kind in (("model", self._model_class), ("data", self._datamodule_class), ("trainer", Trainer)):
            roots[f"{getattr(kind, '__module__', '')}.{getattr(kind, '__qualname__', '')}"] = key
        return blame(error, self.run_config, roots)

    def _dump_config(self) -> None:
        """Keep the values that become the hyperparameters of module and data."""
        if not hasattr(self, "config_dump"):
            plain = plain_values(self.parser, self.config, skip_link_targets=False)
            self.config_dump = plain[self.subcommand] if self.subcommand else plain

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the Trainer with the run's folder, loggers and callbacks."""
        config = {**self._get(self.config_init, "trainer", default={}), **kwargs}
        slots = {name: self._get(self.config_init, name) for name in SLOTS}
        given = config.get("callbacks") or []
        given = given if isinstance(given, list) else [given]

        checkpoint = slots["checkpoint"]
        if config.get("enable_checkpointing") is False:
            checkpoint = slots["checkpoint"] = None
        elif checkpoint is None and not any(isinstance(c, ModelCheckpoint) for c in given):
            config["enable_checkpointing"] = False
        if checkpoint is not None and checkpoint.dirpath is None:
            checkpoint.dirpath = str(self.run_folder / "checkpoints")

        if config.get("enable_progress_bar") is False:
            slots["progress_bar"] = None
        elif slots["progress_bar"] is None and not any(isinstance(c, ProgressBar) for c in given):
            config["enable_progress_bar"] = False

        self._record = RunRecord(self.run_folder, self.run_config, self._moved, resumes=self._resumes)
        callbacks: list[Callback] = [self._record]
        callbacks += reporters(lambda: self.run_folder) if self.subcommand == "fit" else []
        callbacks += [value for value in slots.values() if isinstance(value, Callback)]
        if self.subcommand == "export":
            callbacks = [FirstBatch()]
        if self.subcommand == "predict":
            callbacks.append(PredictionWriter(self.run_folder, self._get_plain("format")))
        config["default_root_dir"] = str(self.run_folder)
        exports = self.subcommand == "export"
        config["logger"] = False if exports else self._loggers(config.get("logger"), slots["wandb"])
        trainer = self._instantiate_trainer(config, callbacks)
        trainer.callbacks += recorders() if self.subcommand == "fit" else []  # type: ignore[attr-defined]
        # One that was chosen, by a plugin or by the strategy, stays.
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = SecretFreeCheckpointIO(VerifiedCheckpointIO())
        return trainer

    def _loggers(self, given: Any, wandb: Logger | None) -> list[Logger]:
        # First: Trainer.log_dir is the first logger's.
        loggers: list[Logger] = [RunCSVLogger(self.run_folder, resumes=self._resumes is not None)]
        if wandb is not None and given is not False:
            loggers.append(wandb)
        if isinstance(given, Logger):
            loggers.append(given)
        elif isinstance(given, (list, tuple)):
            loggers += given
        return loggers

    def _moved(self, folder: Path) -> None:
        self.run_folder = folder

    # Running

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        found = self._resumes or self._evaluates
        if found:
            kwargs["ckpt_path"] = str(found.path)
            kwargs["weights_only"] = True
        if subcommand == "predict":
            kwargs["return_predictions"] = False
        return kwargs

    def _run_subcommand(self, subcommand: str) -> None:
        own = {"check": self._check, "export": self._export, "tune": self._tune, "verify-resume": self._verify_resume}
        if subcommand in own:
            own[subcommand]()
            return
        refuse_lone_node(self.trainer)
        # Loggers get the whole configuration from RunRecord, under names that cannot collide.
        for part in (self.model, self.datamodule):
            if part is not None:
                part._log_hyperparams = False
        existed = self.run_folder.exists()
        try:
            with shared_with_children(self.run_folder):
                super()._run_subcommand(subcommand)
        except CheckpointWriteError as error:
            raise FailedRun(*(error.strerror or str(error)).split("; ")) from error
        except DamagedCheckpointError as error:
            raise refusal(error) from None
        except SystemExit:
            if self._stopped_by():
                say(f"stopped by {self._stopped_by()} after step {self.trainer.global_step}; --resume auto goes on")
            raise
        except (ValueError, RuntimeError, MisconfigurationException) as error:
            late = isinstance(error, ValueError) and passed_through(error, "configure_optimizers")
            if not late and not refused(error):
                raise  # a fault in the project's code: its traceback is what helps
            if not existed and self.trainer.global_step == 0:
                self._remove_run_folder()
            raise self._blamed(error) from error
        finally:
            if self._is_dry:
                shutil.rmtree(self.run_folder, ignore_errors=True)

    def _stopped_by(self) -> str:
        callbacks = getattr(self.trainer, "callbacks", [])
        return next((c.stopped_by for c in callbacks if isinstance(c, GracefulStop) and c.stopped_by), "")

    def _check(self) -> None:
        asked = Checking.of(self.config["check"])
        files = self.config_files.files
        self.report, code = check(self.model, self.datamodule, trainer=self.trainer, asked=asked, configs=files)
        if code:
            raise SystemExit(code)

    def _export(self) -> None:
        assert self._evaluates is not None
        asked = {"form": self._get_plain("format"), "tolerance": self._get_plain("tolerance")}
        export(self.trainer, self.model, self.datamodule, self._evaluates, self.run_folder, **asked)

    def _tune(self) -> None:
        code = tune(Tuning.of(self.config["tune"]), self._argv, self._read, self.project_root)
        if code:
            raise SystemExit(code)

    def _verify_resume(self) -> None:
        asked = Verifying.of(self.config["verify-resume"])
        code = verify_resume(asked, self._argv, read=self._read, become=self._become)
        if code:
            raise SystemExit(code)

    def _become(self, argv: list[str]) -> None:
        """Start over with another command line, in a process that has built nothing yet."""
        self.parse_arguments(self.parser, argv)
        self._set_seed()
        self.before_instantiate_classes()
        self.instantiate_classes()
        self.after_instantiate_classes()
        self._run_subcommand(str(self.subcommand))

    def _remove_run_folder(self) -> None:
        """Take back what a run left that could not begin."""
        for logger in self.trainer.loggers:
            if isinstance(logger, SafeWandbLogger):
                with unsaid():  # where it is: not for long
                    logger.finish()
        if self.trainer.is_global_zero:
            shutil.rmtree(self.run_folder, ignore_errors=True)
            with suppress(OSError):  # rmdir leaves a folder that holds another run
                self.run_folder.parent.rmdir()
                self.run_folder.parent.parent.rmdir()

    def after_fit(self) -> None:
        """Draw the run, and say where everything is."""
        if not self.trainer.is_global_zero or self._is_dry:
            return
        picture = plot_run(self.run_folder)
        checkpoint = self.trainer.checkpoint_callback
        say(f"run folder:      {short(self.run_folder)}")
        if isinstance(checkpoint, ModelCheckpoint) and checkpoint.best_model_path:
            score = checkpoint.best_model_score
            rated = f"  ({checkpoint.monitor} {float(score):.4g})" if checkpoint.monitor and score is not None else ""
            say(f"best checkpoint: {short(checkpoint.best_model_path)}{rated}")
        if picture:
            say(f"picture:         {short(picture)}")

    def after_validate(self) -> None:
        """Say where the values are."""
        self._tell_values()

    def after_test(self) -> None:
        """Say where the values are; of a run's best checkpoint, write the model card."""
        self._tell_values()
        tested = self._evaluates
        run = run_folder_of(tested.path) if tested else None
        if tested and run and self.trainer.is_global_zero and not self._is_dry and best_in(run) == tested:
            write_model_card(run, self.model, tested, self.trainer.callback_metrics)

    def _tell_values(self) -> None:
        path = self.run_folder / "metrics.csv"
        if self.trainer.is_global_zero and path.is_file():
            say(f"values: {short(path)}")


def _packages_of(*classes: Any) -> set[str]:
    """Return the packages that the project's own code is in."""
    return {"__main__", *(cls.__module__.partition(".")[0] for cls in classes if cls is not None)}
