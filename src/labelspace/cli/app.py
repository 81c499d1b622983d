"""The command line: ``labelspace quickstart | info | convert | train | presets | evaluate | calibrate | predict``,
``serve | report | export | bench``, and what makes a model another: ``tune | join | documents | labels | index``,
``compact``.

Results go to standard output, everything else to standard error. Exit codes: 0 good, 1 an error of labelspace with one
plain message, 2 wrong usage or settings, 130 interrupted, 141 a closed pipe, 143 terminated. What the commands do is in
`training`, `data`, `models`, `memory` and `serve`, which are loaded when one of them runs.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any, get_args

from cyclopts import App, CycloptsError, MissingArgumentError, Parameter
from cyclopts.config import Dict, Env

from .. import __version__
from ..base import processes
from ..base.machine import ask_for_huge_pages, start_clock
from ..errors import LabelspaceError, SettingsError

PROCESS_BEGAN = time.monotonic()

logger = logging.getLogger("labelspace")


def _config_file(recipe: str, app: App, commands: tuple[str, ...], arguments: Any) -> None:
    """Fill in what the file of --config says and no flag or environment variable does."""
    from ..training.config import GONE, read_config

    for argument in arguments:
        if argument.name == "--config" and argument.tokens:
            path = argument.tokens[0].value
            values = read_config(path)
            _refuse_unknown(values, path, recipe)
            known = {k: v for k, v in values.items() if v is not None and k not in GONE}
            source = Dict(known, use_commands_as_keys=False, source=path)
            source(app, commands, arguments)


def _preset(recipe: str, app: App, commands: tuple[str, ...], arguments: Any) -> None:
    """Fill in what the preset says and nothing else does."""
    for argument in arguments:
        if argument.name == "--preset" and argument.tokens:
            from ..training.presets import read_preset

            preset = read_preset(argument.tokens[0].value)
            preset.require(recipe)
            Dict(preset.values, use_commands_as_keys=False, source=preset.name)(app, commands, arguments)


def _missing(error: CycloptsError) -> str:
    """Which argument without a flag is missing, as --help calls it; empty where it is something else."""
    argument = error.argument
    if not isinstance(error, MissingArgumentError) or argument is None or argument.tokens or error.keyword:
        return ""
    if not argument.field_info.is_positional:
        return ""
    return f"{' '.join(error.command_chain or ())} needs {argument.name.lstrip('-').upper()}, which is missing"


def _no_empty_paths(app: App, commands: tuple[str, ...], arguments: Any) -> None:
    """Refuse empty names of files and folders, which would be read as the folder that the command runs in."""
    for argument in arguments:
        file = argument.name.lstrip("-").lower() in ("file", "texts") or "Path" in str(argument.hint)
        if file and any(token.value == "" for token in argument.tokens):
            raise SettingsError(f"{argument.name} is empty; name a file or folder")


def _whole_numbers(app: App, commands: tuple[str, ...], arguments: Any) -> None:
    """Refuse fractions where a whole number is asked for, which would be rounded without a word."""
    for argument in arguments:
        kinds = _kinds(argument.hint)
        if int in kinds and float not in kinds:
            for token in argument.tokens:
                with contextlib.suppress(ValueError):  # no number at all is told of later
                    if not float(token.value).is_integer():
                        raise SettingsError(f"{argument.name} is a whole number, got {token.value}")


def _kinds(hint: Any) -> set[Any]:
    """The types that an annotation is made of."""
    parts = get_args(hint)
    return set().union(*map(_kinds, parts)) if parts else {hint} if isinstance(hint, type) else set()


def _refuse_unknown(values: dict[str, Any], path: str, recipe: str) -> None:
    """Names that a configuration file may hold: settings of the recipe, and how data files are read."""
    from ..training.config import resolve
    from .options import SplitOptions

    others = {*SplitOptions.__dataclass_fields__, "recipe", "out"}
    settings = {k: v for k, v in values.items() if k not in others and v is not None}
    resolve(recipe, settings, path)


COMMANDS = {
    "quickstart": "Train on ICD-10-CM, print metrics before and after, and ten predictions; takes under three minutes.",
    "info": "Describe a data set: counts, lengths, label frequencies, and the memory that training would take.",
    "convert": "Write a data set in another format, so that reading it again gives the same.",
    "train": "Train a model and save it with its log and settings.",
    "presets": "List the papers' runs that train --preset takes, with figures and costs, or show one with its sources.",
    "evaluate": "Measure a model, or the scores of any tool, on a data set.",
    "calibrate": "Fit probabilities to the scores of a model on held-out documents, and write them into its folder.",
    "predict": "Predict labels for texts.",
    "report": "Write one HTML page about one or several runs: metrics, curves, mistakes, examples with reasons, cost.",
    "export": "Write a part of a model for other tools: the encoder, as ONNX too, the keys, or a model card.",
    "bench": "Measure speed on this machine against sentence-transformers, faiss and plain twins, as ratios.",
}
MODULES = {"info": "data", "convert": "data", **dict.fromkeys(("quickstart", "train", "presets", "bench"), "training")}
"""Where a command is, if not in `models`."""
MEMORY_COMMANDS = {
    "tune": "Give a model the documents of a data set as keys, and choose how keys vote on its validation documents.",
    "join": "Make one model of several of the same labels, and choose their shares on validation documents.",
    "index": "Choose how the keys of a model are searched, or show how they are: exactly, or through graphs.",
    "compact": "Rewrite what a model answers from without what was removed; predictions stay as they are.",
}
SERVE = "Answer over HTTP, with a page for people at /; ends on Ctrl-C or SIGTERM, when all that was taken is answered."
GROUPS = {
    "documents": {
        "help": "Documents that vote for their labels: add, remove, list.",
        "add": "Let documents vote for their labels from now on, without training.",
        "remove": "Let documents vote no more.",
        "list": "Print id, labels and text of every document, apart by tabs.",
    },
    "labels": {
        "help": "Labels of a model: add, rename, remove, list.",
        "add": "Add labels; they are predicted from their texts at once, and from documents when these are added.",
        "rename": "Give labels new texts; their ids stay, and so do the documents that vote for them.",
        "remove": "Take labels away; documents that have no other label vote no more.",
        "list": "Print id and text of every label, apart by a tab.",
    },
}
ALIASES = {"evaluate": ("eval",), "predict": ("suggest",)}


def _app(recipe: str) -> App:
    """The commands; the flags of ``train`` are the settings of a recipe. What they do is loaded when one runs."""
    app = App(
        name="labelspace",
        help="Pick a handful of labels out of very many, by their texts.",
        version=__version__,
        version_flags=["--version"],
        config=[
            Env("LABELSPACE_", command=False, show=False),
            functools.partial(_config_file, recipe),
            functools.partial(_preset, recipe),
            _no_empty_paths,
            _whole_numbers,
        ],
        default_parameter=Parameter(negative_none=()),
        help_format="plaintext",
        suppress_keyboard_interrupt=False,
    )
    for name, text in COMMANDS.items():
        function = f"train_{recipe}" if name == "train" else name
        app.command(
            f"labelspace.cli.{MODULES.get(name, 'models')}:{function}", name=(name, *ALIASES.get(name, ())), help=text
        )
    for name, text in MEMORY_COMMANDS.items():
        app.command(f"labelspace.cli.memory:{name}", name=name, help=text)
    app.command("labelspace.cli.serve:serve", name="serve", help=SERVE)
    for group, verbs in GROUPS.items():
        part = App(name=group, help=verbs["help"], help_format="plaintext")
        for verb, text in verbs.items():
            if verb != "help":
                part.command(f"labelspace.cli.memory:{group}_{verb}", name=verb, help=text)
        app.command(part)
    return app


@contextlib.contextmanager
def _logging(quiet: bool) -> Iterator[None]:
    """Messages of labelspace on standard error while a command runs."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    if processes.rank():  # the first of several processes speaks for all
        logger.setLevel(logging.CRITICAL)
    if quiet:
        os.environ["TQDM_DISABLE"] = "1"
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def _recipe(tokens: list[str]) -> str:
    """The recipe that a training command asks for, by flag, environment, configuration file or run to resume."""
    from ..recipes import recipe_of
    from ..training.config import KNOWN, RECIPES, read_config, recipe_with

    def asked(
        *, recipe: str | None = None, config: str | None = None, resume: str | None = None, preset: str | None = None
    ) -> tuple[Any, ...]:
        return recipe, config, resume, preset

    app = App(config=Env("LABELSPACE_", command=False, show=False), help_flags=[], version_flags=[])
    app.default(asked)
    _, bound, others, _ = app.parse_known_args(tokens)
    recipe, config, resume, preset = asked(**bound.kwargs)
    values = {} if config is None else read_config(config)
    recipe = recipe or values.get("recipe") or (None if resume is None else recipe_of(resume))
    if recipe is None and preset is not None:
        from ..training.presets import read_preset

        recipe = read_preset(preset).recipe
    if recipe in RECIPES:
        return str(recipe)
    flags = {token.split("=")[0].removeprefix("--").replace("-", "_") for token in others if token.startswith("--")}
    variables = {name.removeprefix("LABELSPACE_").lower() for name in os.environ if name.startswith("LABELSPACE_")}
    return recipe_with(KNOWN & {*flags, *(name.removeprefix("no_") for name in flags), *values, *variables})


def _say(message: str, error: BaseException | None = None) -> None:
    """Print an error; of several processes the first one does, or the one that met it first."""
    if not getattr(error, "told", processes.rank() > 0):
        print(f"labelspace: {message}", file=sys.stderr)


def _one_process(tokens: list[str]) -> None:
    """Refuse several processes for a command that would do its work in each of them.

    Raises:
        SettingsError: there are several, and the command does not train.
    """
    if processes.count() > 1 and tokens[:1] != ["train"]:
        what = " ".join(tokens[:1]) or "labelspace"
        raise SettingsError(
            f"{what} works in one process, and WORLD_SIZE says that this is one of {processes.count()}; "
            "only train shares its work, so start this command by itself"
        )


def main(tokens: list[str] | None = None, began: float | None = None) -> int:
    """Run a command and return its exit code.

    Args:
        tokens: the arguments; None for those of the process.
        began: when the command began, by `time.monotonic`; None for now.
    """
    start_clock(began)
    tokens = sys.argv[1:] if tokens is None else tokens
    debug, quiet = "--debug" in tokens, "--quiet" in tokens
    if tokens[:1] != ["bench"]:  # which measures others with the allocator as they find it
        ask_for_huge_pages()
    try:
        with _logging(quiet):
            _one_process(tokens)
            app = _app(_recipe(tokens[1:]) if tokens[:1] == ["train"] else "auto")
            app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
        return 0
    except CycloptsError as error:
        message = _missing(error) or " ".join(str(error).split()).removesuffix(".")
        if type(error.__cause__).__name__ == "ValidationError":  # pydantic's, not loaded for every command
            from ..training.config import in_one_sentence

            message = in_one_sentence(error.__cause__)  # type: ignore[arg-type]
        _say(f"{message}; see labelspace --help", error)
        return 2
    except SettingsError as error:
        if debug:
            raise
        _say(str(error), error)
        return 2
    except LabelspaceError as error:
        if debug:
            raise
        _say(str(error), error)
        return 1
    except BrokenPipeError:
        sys.stderr.close()
        return 141
    except MemoryError as error:
        _say("out of memory; lower --batch-size, --chunk-size or --k, or use a larger machine", error)
        return 1
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not loaded for every command
            raise
        _say("the device is out of memory; lower --batch-size or --chunk-size", error)
        return 1
    except OSError as error:
        if debug:
            raise
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        _say(what, error)
        return 1
    except Exception as error:
        if debug or type(error).__name__ != "SafetensorError":  # what it raises instead of OSError, on a full disk say
            raise
        _say(f"a file of weights cannot be written or read: {error}", error)
        return 1
    except KeyboardInterrupt:
        _say("interrupted")
        return 130


def _terminate(number: int, frame: object) -> None:
    """End as by an error, so that what is half-written is removed; a second signal ends at once."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.exit(128 + number)


def _write_utf8() -> None:
    """Write UTF-8 to files and pipes, whatever the machine's own encoding; a terminal shows "?" for what it has not."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            if stream.isatty():
                stream.reconfigure(errors="replace")
            else:
                stream.reconfigure(encoding="utf-8", errors="backslashreplace" if stream is sys.stderr else "strict")


def run() -> None:
    """Entry point of the ``labelspace`` command."""
    signal.signal(signal.SIGTERM, _terminate)
    _write_utf8()
    sys.exit(main(began=PROCESS_BEGAN))
