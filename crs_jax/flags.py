"""The command line: what it accepts, what it says when it cannot, and its help."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import pathlib
import re
import runpy
import traceback
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from configs import common
from crs_jax import config as checks
from crs_jax import plugins
from crs_jax.data.records import clipped
from crs_jax.runtime import arguments
from crs_jax.runtime.errors import InputError
from crs_jax.settings import Setting

_OVERRIDE = re.compile(r"--?(?P<no>no)?config\.(?P<path>[^=]+)(?P<value>=.*)?", re.DOTALL)
_NOT_CONFIGS = ("__init__", "common", "variants")


@dataclasses.dataclass(frozen=True)
class Command:
    """A parsed command line.

    Attributes:
      config: complete, checked and locked.
      workdir: where the run leaves everything.
      distributed: keyword arguments for `jax.distributed.initialize`; None for a single process.
    """

    config: ConfigDict
    workdir: pathlib.Path
    distributed: dict[str, Any] | None


def parse(argv: Sequence[str], values: flags.FlagValues) -> Command:
    """Reads a command line.

    Args:
      argv: the program's name, then its arguments.
      values: gets the flags defined on it: absl's `FLAGS`, or a fresh one.

    Raises:
      InputError: one line that names the flag, for anything that cannot be used.
    """
    argv = list(argv)
    added = plugins.given(argv)
    plugins.load(added)  # before settings are checked, which may name what they add
    define(values, argv)
    try:
        expanded = values.read_flags_from_files(argv, force_gnu=False)
        source = _config_source(expanded)
        if source is None:
            raise InputError("--config is missing; for example --config=configs/quickstart.py (--help shows more)")
        defaults = load_config(source)
        _check_overrides(expanded, source, defaults)
        rest = values(argv)
    except flags.Error as error:
        raise InputError(_explain(str(error))) from None
    if len(rest) > 1:
        raise InputError(f"unexpected argument {rest[1]!r}; every setting is a flag, such as --config.seed=1")
    config = values.config
    config.plugins = added or config.plugins
    plugins.load(config.plugins)
    with config.unlocked():  # a config file that names plugins was made before they added their signals
        known = common.settings().defaults()["reward"]["weights"]
        config.reward.weights = {**known, **config.reward.weights.to_dict()}
    checks.validate(config)
    if values.workdir and "://" in values.workdir:
        raise InputError(f"--workdir={values.workdir}: a bucket has to be mounted; name the folder it is mounted at")
    workdir = arguments.path("--workdir", values.workdir or pathlib.Path("runs") / run_name(source))
    try:
        in_the_way = workdir.exists() and not workdir.is_dir()
    except OSError as error:
        raise InputError(f"--workdir={clipped(str(workdir), 200)}: {error.strerror}; name another folder") from None
    if in_the_way:
        raise InputError(f"--workdir={workdir}: this is a file; name a folder")
    return Command(config, workdir, _distributed(values))


def define(values: flags.FlagValues, argv: Sequence[str] | None = None) -> None:
    """Defines the program's flags on `values`."""
    config_flags.DEFINE_config_file(
        "config",
        None,
        "Config file, with a variant after a colon: configs/redial_ppo.py:scratch. Comes before its overrides.",
        flag_values=values,
        sys_argv=None if argv is None else list(argv),
    )
    own: Any = {"flag_values": values}
    workdir = "Folder of the run; a folder that holds stages is continued. Default: runs/NAME of the config."
    flags.DEFINE_string("workdir", None, workdir, **own)
    flags.DEFINE_string("plugins", None, "Python files, by commas, that add to the registries.", **own)
    flags.DEFINE_bool("distributed", False, "One process of several: calls jax.distributed.initialize().", **own)
    flags.DEFINE_string("coordinator", None, "With --distributed: HOST:PORT of process 0. Default: found.", **own)
    flags.DEFINE_integer("processes", None, "With --distributed: how many processes. Default: found.", **own)
    flags.DEFINE_integer("process", None, "With --distributed: this one's number, from 0. Default: found.", **own)


def load_config(source: str) -> ConfigDict:
    """The unmodified config of `FILE` or `FILE:VARIANT`; `InputError` when the file cannot give one."""
    path, _, variant = source.partition(":")
    if not pathlib.Path(path).is_file():
        near = sorted(str(p) for p in pathlib.Path("configs").glob("*.py") if p.stem not in _NOT_CONFIGS)
        hint = f"; there are {', '.join(near)}" if near else ""
        raise InputError(f"--config={source}: there is no file {path}{hint}")
    try:
        make = runpy.run_path(path).get("get_config")
        if not callable(make):
            raise InputError(f"--config={source}: {path} defines no function get_config")
        if ":" in source and not inspect.signature(make).parameters:
            raise InputError(f"--config={source}: {path} has no variants; leave out {':' + variant!r}")
        config = make(variant) if ":" in source else make()
    except InputError:
        raise
    except Exception as error:
        where = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.endswith(path)]
        line = where[-1].lineno if where else getattr(error, "lineno", None)
        at = f"{path}:{line}" if line else path
        raise InputError(f"--config={source}: {at}: {type(error).__name__}: {_one_line(str(error))}") from None
    if not isinstance(config, ConfigDict):
        raise InputError(f"--config={source}: get_config returned {type(config).__name__}, expected a ConfigDict")
    return config


def run_name(source: str) -> str:
    """Name of a run's folder: `configs/redial_ppo.py:tiny` gives `redial_ppo-tiny`."""
    path, _, variant = source.partition(":")
    return re.sub(r"[^\w.-]+", "_", pathlib.Path(path).stem + (f"-{variant}" if variant else ""))


def asks_for_help(argv: Sequence[str]) -> bool:
    """Whether --help or --helpfull (or their variants) is among the arguments."""
    return any(re.fullmatch(r"(-h|--?help(full|short)?)(=true)?", arg) for arg in argv[1:])


def help_text(argv: Sequence[str], values: flags.FlagValues, usage: str) -> str:
    """What --help prints: usage, examples and flags; --helpfull adds every setting and absl's own flags.

    With --config the settings show that config's values, else the defaults of configs/common.py.
    """
    own = flags.FlagValues()
    define(own, argv[:1])
    lines = [usage.strip(), "", "Flags"]
    for name in ("config", "workdir", "plugins", "distributed", "coordinator", "processes", "process"):
        lines.append(f"  --{name:<12} {own[name].help}")
    if not any("helpfull" in arg for arg in argv[1:]):
        lines += ["", "--helpfull adds every setting with its value and meaning."]
        return "\n".join(lines)
    plugins.load(plugins.given(argv))  # which may add settings and choices
    source = _config_source(argv)
    config = load_config(source) if source else common.get_config()
    lines += ["", f"Settings, as in {source or 'configs/common.py'}; change one with --config.NAME=VALUE", ""]
    lines += describe(config)
    others = values.get_help().strip()
    if others:
        lines += ["", "Flags of absl (logging, debugging, --flagfile)", "", others]
    return "\n".join(lines)


def describe(config: ConfigDict) -> list[str]:
    """One line for each setting: name, value, meaning and what it may be, in the order of configs/common.py."""
    known, values = dict(common.settings().walk()), dict(checks.fields(config))
    paths = [path for path in known if path in values] + [path for path in values if path not in known]
    names, settings = max(map(len, paths)), min(24, max(len(_written(value)) for value in values.values()))
    lines, group = [], ""
    for path in paths:
        head = path.rpartition(".")[0]
        if head != group:
            group = head
            lines += ["", f"  {group}: {known[group].meaning}"] if group in known else [""]
        about = known.get(path)
        meaning = f"{about.meaning}{about.allowed and f' ({about.allowed})'}" if isinstance(about, Setting) else ""
        lines.append(f"  {path:<{names}}  {_written(values[path]):<{settings}}  {meaning}".rstrip())
    return lines


def _config_source(argv: Sequence[str]) -> str | None:
    for at, arg in enumerate(argv[1:], 1):
        match = re.fullmatch(r"--?config(?:=(.*))?", arg, re.DOTALL)
        if match:
            return match[1] if match[1] is not None else (argv[at + 1] if at + 1 < len(argv) else "")
    return None


def _check_overrides(argv: Sequence[str], source: str, config: ConfigDict) -> None:
    known = dict(checks.fields(config))
    groups = {path.rpartition(".")[0] for path in known} - {""}
    for arg in argv[1:]:
        match = _OVERRIDE.fullmatch(arg)
        if match is None:
            continue
        path = match["path"]
        if path in groups:
            inside = [p for p in known if p.startswith(path + ".")]
            raise InputError(f"--config.{path}: this is a group; set its fields, such as --config.{inside[0]}")
        if path not in known:
            raise InputError(f"--config.{path}: there is no such setting in {source}{_suggest(path, known)}")
        if match["no"] and not isinstance(known[path], bool):
            raise InputError(
                f"--noconfig.{path}: only a setting that is true or false takes no; this is {known[path]!r}"
            )


def _suggest(path: str, known: dict[str, Any]) -> str:
    last = path.rpartition(".")[2]
    near = [p for p in known if p.rpartition(".")[2] == last][:3]
    near = near or difflib.get_close_matches(path, known, n=1, cutoff=0.6)
    if not near:
        leaves = difflib.get_close_matches(last, {p.rpartition(".")[2] for p in known}, n=1, cutoff=0.7)
        near = [p for p in known if p.rpartition(".")[2] in leaves][:3]
    if not near:
        return "; --helpfull lists all"
    return f"; did you mean {' or '.join('--config.' + p for p in near)}?"


def _explain(message: str) -> str:
    """Absl's message on one line, with what was expected where a setting has the wrong type."""
    match = re.search(r"flag --(config\.([\w.]+)=.*?): ", message, re.DOTALL)
    setting = match and common.settings().flat().get(match[2])
    if match is None or setting is None:
        return clipped(_one_line(message))
    return f"--{clipped(_one_line(match[1]))}: expected {setting.kind}, such as {_written(setting.default)}"


def _distributed(values: flags.FlagValues) -> dict[str, Any] | None:
    given = {
        "coordinator_address": values.coordinator,
        "num_processes": values.processes,
        "process_id": values.process,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if given and not values.distributed:
        raise InputError("--coordinator, --processes and --process: add --distributed, or leave them out")
    if values.coordinator and not re.fullmatch(r".+:\d+", values.coordinator):
        raise InputError(f"--coordinator={values.coordinator}: expected HOST:PORT of process 0")
    return given if values.distributed else None


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if not isinstance(value, str) else value or "''"


def _one_line(text: str) -> str:
    return " ".join(text.split())
