"""The command line before Hydra reads it, and Hydra's errors about it."""

import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.errors import ConfigCompositionException, OverrideParseException
from omegaconf import OmegaConf

from gating.errors import explain, nearest_name
from gating.storage.same_settings import leaves
from gating.tracking.redaction import redact_output

__all__ = ["compose_errors", "faults_of_run", "open_tables", "prepare_arguments"]

_FAULT = "is_fault_of_run"
# Hydra's message about plugins of the extra `sweep`.
_PLUGIN = re.compile(r"Could not find 'hydra/(launcher|sweeper)/(joblib|submitit_\w+|optuna)'")
# Hydra's messages about a setting that the chosen options do not have, and about an option that a group does not have.
_UNKNOWN = re.compile(r"Could not override '(\w+)(?:\.([\w.]+))?'")
_NO_OPTION = re.compile(
    r"Could not (?:find|load) '([\w/]+)/([^'/]+)'\.?(?: Available options in '[^']*': (.*))? Config search path"
)
# Groups that accept more settings than their files have.
_OPEN_GROUPS = ("callbacks", "data", "model", "optimizer", "scheduler", "trainer")
# Of these, with settings that depend on a class that the command may name.
_OF_CLASSES = ("optimizer", "scheduler")
_ADDED = re.compile(rf"(?P<group>{'|'.join(_OPEN_GROUPS)})\.(?P<name>\w+)(\.[\w.]+)?=")
# Settings with free keys, and those of loggers, of which each option has its own.
_OPEN_TABLES = re.compile(
    r"(model\.config|scheduler\.arguments|logger\.\w+|objective\.num_\w+|objective\.keep|objective\.cost|task\.metrics)"
    r"(\.[\w.]+)?="
)


def prepare_arguments(conf: Path) -> None:
    """Check and complete the arguments of the command, in place.

    Raises:
        SystemExit: A group of settings is set to null, or a sweep is asked for without ``-m``.
    """
    redact_output()
    sys.argv[1:] = _flags_first(sys.argv[1:])
    _check_groups(sys.argv[1:], conf)
    _check_multirun(sys.argv[1:], conf)
    sys.argv[1:] = open_tables(sys.argv[1:], conf=conf)


@contextmanager
def compose_errors(conf: Path) -> Iterator[None]:
    """Print Hydra's errors about the composition of settings as one sentence, with exit code 1."""
    # With this variable Hydra raises its errors instead of printing them.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(130)
    except OverrideParseException as error:
        hint = "Put quotes around a value with =, commas or brackets: \"NAME='VALUE'\"."
        sys.exit(f"error: {explain(error)} {hint}")
    except ConfigCompositionException as error:
        sys.exit(f"error: {_explain_composition(explain(error), conf)}")
    except Exception as error:  # Hydra raises errors of many classes about settings and its plugins.
        if getattr(error, _FAULT, False):
            raise
        sys.exit(f"error: {explain(error)}")


@contextmanager
def faults_of_run() -> Iterator[None]:
    """Mark exceptions of a ``with`` block, so that :func:`compose_errors` lets them pass with their traceback."""
    try:
        yield
    except Exception as error:
        setattr(error, _FAULT, True)
        raise


def _flags_first(arguments: Sequence[str]) -> list[str]:
    """Return arguments with flags before settings: Hydra's parser takes no settings after a flag in their midst."""
    parsed, others = get_args_parser().parse_known_args(arguments)
    settings = [*parsed.overrides, *others]
    if any(setting.startswith("-") for setting in settings):
        return list(arguments)
    flags = list(arguments)
    for setting in settings:
        flags.remove(setting)
    return [*flags, *settings]


def _explain_composition(message: str, conf: Path) -> str:
    """Return Hydra's message about the composition of settings, or a better one where it has a known cause."""
    plugin = _PLUGIN.search(message)
    if plugin is not None:
        return f'hydra/{plugin[1]}={plugin[2]} needs a package that is not installed: pip install "head-gating[sweep]"'
    option = _NO_OPTION.search(message)
    if option is not None:
        names = option[3].split() if option[3] else sorted(path.stem for path in (conf / option[1]).glob("*.yaml"))
        return _no_option(option[1], option[2], names)
    unknown = _UNKNOWN.match(message)
    return _explain_unknown(unknown[1], unknown[2], conf) if unknown else message


def _no_option(group: str, option: str, names: Sequence[str]) -> str:
    return f"{group}={option}: there is no such option. {nearest_name(option, names)}"


def _explain_unknown(group: str, name: str | None, conf: Path) -> str:
    """Return the message about a setting that the chosen option of its group does not have, or about its group."""
    groups = [folder.name for folder in conf.iterdir() if folder.is_dir()]
    settings = [str(key) for key in OmegaConf.load(conf / "config.yaml") if key not in ("defaults", "hydra")]
    if name is None or group not in groups:
        return f"There is no setting {group}. {nearest_name(group, sorted({*groups, *settings}))}"
    if f"~{group}" in sys.argv[1:]:
        return f"{group} is missing, which every run needs: leave ~{group} out of the command."
    options = sorted(path.stem for path in (conf / group).glob("*.yaml"))
    given = [argument.partition("=")[2] for argument in sys.argv[1:] if argument.startswith(f"{group}=")]
    chosen = [option for option in given if option in options][-1:]
    problem = f"There is no setting {group}.{name} with {f'{group}={chosen[0]}' if chosen else f'this {group}'}"
    having = [f"{group}={option}" for option in options if name in _names_in(conf / group, (option,))]
    if having:
        one_of = "one of " if len(having) > 1 else ""
        return f"{problem}: leave it out, or choose {one_of}{', '.join(having)}."
    known = _names_in(conf / group, tuple(chosen or options))
    names = sorted(name for name in known if not name.rpartition(".")[2].startswith("_") and name != "defaults")
    hint = nearest_name(name, names, prefix=f"{group}.") if names else "There are none."
    return f"{problem}. {hint}"


def _check_groups(arguments: Sequence[str], conf: Path) -> None:
    """Exit where a group of settings is set to null, for which Hydra prints internals."""
    for argument in arguments:
        group, _, option = argument.partition("=")
        if option in ("null", "None") and (conf / group).is_dir():
            options = ", ".join(sorted(path.stem for path in (conf / group).glob("*.yaml")))
            sys.exit(f"error: {argument}: {group} is a group of settings; choose one of {options}.")


def _check_multirun(arguments: Sequence[str], conf: Path) -> None:
    """Exit where a sweep is asked for without ``-m``, with which Hydra would run a single job."""
    if {"-m", "--multirun"} & set(arguments) or any(argument.startswith(("--", "-c")) for argument in arguments):
        return
    for argument in arguments:
        group, _, option = argument.partition("=")
        if group in ("sweep", "hparams_search"):
            names = sorted(path.stem for path in (conf / group).glob("*.yaml"))
            refusal = f"{argument} runs several jobs: add -m, as in python train.py -m {argument}."
            sys.exit(f"error: {refusal if option in names else _no_option(group, option, names)}")


def open_tables(arguments: Sequence[str], *, conf: Path) -> list[str]:
    """Return the arguments of a command with ``++`` (add or replace) in front of settings that may be added.

    The validation of all settings refuses unknown names later.
    """
    chosen = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    return [f"++{argument}" if _is_added(argument, chosen, conf) else argument for argument in arguments]


def _is_added(argument: str, chosen: Mapping[str, str], conf: Path) -> bool:
    name = _ADDED.match(argument)
    table = _OPEN_TABLES.match(argument)
    if table is not None:
        return table[1].startswith(("model.", "logger.")) or table[2] is not None
    if name is None:
        return False
    group = conf / name["group"]
    options = [path.stem for path in group.glob("*.yaml")]
    if name["group"] in _OF_CLASSES:
        return any(name["name"] not in _names_in(group, (option,)) for option in options)
    option = chosen.get(name["group"])
    return name["name"] not in _names_in(group, (option,) if option in options else tuple(options))


@cache
def _names_in(group: Path, options: tuple[str, ...]) -> set[str]:
    """Return the names of the settings in some files of a group, and in the files of their defaults.

    Settings in tables have dotted names beside those of their tables.
    """
    names = set[str]()
    for option in options:
        settings: Any = OmegaConf.load(group / f"{option}.yaml")
        others = tuple(name for name in settings.get("defaults", ()) if name != "_self_" and isinstance(name, str))
        plain: Any = OmegaConf.to_container(settings)
        names |= {*plain, *(name for name, _ in leaves(plain))} | _names_in(group, others)
    return names
