# SPDX-License-Identifier: MIT
"""The frame of every program: Hydra's arguments, short messages for mistakes, exit codes.

Free of torch: a mistake in the command line is reported at once.
"""

from __future__ import annotations

import atexit
import errno
import inspect
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from solo import extensions
from solo.errors import ConfigError, SoloError, did_you_mean
from solo.programs import code_in_yaml
from solo.recipes import named, names, place
from solo.registry import import_plugins

EXIT_CODE = 2
_OURS = "SOLO_SET_HYDRA_FULL_ERROR"  # tells programs that we start that the user did not set it
TRACEBACK_WANTED = os.environ.get("HYDRA_FULL_ERROR") == "1" and _OURS not in os.environ
if not TRACEBACK_WANTED:  # otherwise Hydra prints and exits by itself
    os.environ |= {"HYDRA_FULL_ERROR": "1", _OURS: "1"}
# a folder without permission, a full or read-only disk
_MACHINE_REFUSES = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
_NO_MEMORY = "DefaultCPUAllocator: can't allocate memory"
#: folders of scripts/ that hold the recipes of a program, by its schema
KINDS = {"Pretrain": ("pretrain",), "Linear": ("linear", "finetune")}
_COMPOSE = ("hydra.errors", "hydra.core", "omegaconf.errors", "yaml.")


def exit_code(task: Callable[[], Any], schema: type | None = None) -> int:
    """Run `task()`; print a mistake of the user's as one message.

    Args:
        task: the program; for Hydra programs the function that `hydra.main` made. It may return
            an exit code of its own.
        schema: dataclass of the program's keys, for the nearest name of a key that Hydra refuses.

    Returns:
        0, the task's own code, or 2 after a message. A user who wants the whole traceback sets
        HYDRA_FULL_ERROR=1.
    """
    try:
        result = task()
    except Exception as error:
        message = str(error) if isinstance(error, SoloError) else explain(error, schema)
        if message is None or TRACEBACK_WANTED:
            raise
        print(f"error: {message}", file=sys.stderr, flush=True)
        return EXIT_CODE
    return result if isinstance(result, int) else 0


def run_program(task: Callable[[], Any], schema: type | None = None) -> None:
    """`exit_code`, which ends the process unless it is 0."""
    if code := exit_code(task, schema):
        sys.exit(code)


def long_program(task: Callable[[], Any]) -> int:
    """`exit_code` of a program that starts others: SIGTERM ends them, Ctrl-C gives code 130."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return exit_code(task)
    except KeyboardInterrupt:
        print("\nInterrupted. The same command goes on from here.", file=sys.stderr)
        return 130


def hydra_program(task: Callable[[], Any], schema: type) -> None:
    """`run_program` for a function of `hydra.main`: finds the config folder first."""
    file = inspect.getfile(inspect.unwrap(task))
    if _wants_help(sys.argv):
        from solo.programs.key_list import describe_keys

        print(f"{inspect.getmodule(inspect.unwrap(task)).__doc__}\n{describe_keys(schema)}")
        return

    def program() -> int:
        _quote_values(sys.argv)
        trusted = code_in_yaml.allowed(sys.argv)
        config = _prepare_arguments(
            sys.argv, Path(file).parent, KINDS.get(schema.__name__, ("pretrain",))
        )
        if config is not None and not trusted:
            overrides = [a for a in sys.argv[1:] if "=" in a and not a.startswith("-")]
            code_in_yaml.refuse_code(config.parent, config.stem, overrides)
        _import_plugins(sys.argv, config)
        task()
        from solo.programs import multirun

        return multirun.close()

    run_program(program, schema)


def _wants_help(argv: list[str]) -> bool:
    """Help on the program; with a configuration beside it Hydra prints that instead."""
    asked = {"--help", "-h"} & set(argv[1:])
    return bool(asked) and _option(argv, "--config-name", "-cn") is None


def _prepare_arguments(
    argv: list[str], program_dir: Path, kinds: tuple[str, ...] = KINDS["Pretrain"]
) -> Path | None:
    """Find the folder of the configuration, in place.

    `--config-path` may be relative to the program's file (Hydra's rule), to the current folder, or
    to what is installed (`scripts/...`); without it the recipe is looked for by its name.

    Returns:
        the configuration's file, where that is known before Hydra looks for it.

    Raises:
        ConfigError: no configuration is named, or its folder or file does not exist.
    """
    name = _option(argv, "--config-name", "-cn")
    if name is None and {"--hydra-help", "--version", "--info", "-i"} & set(argv[1:]):
        return None
    if name is None:
        raise ConfigError(
            "no configuration: add --config-path FOLDER --config-name FILE.yaml, for example "
            "--config-path scripts/pretrain/cifar --config-name byol.yaml"
        )
    folder = _option(argv, "--config-path", "-cp") or _option(argv, "--config-dir", "-cd")
    if folder is None and (recipe := _recipe(name[1], kinds)) is not None:
        argv[1:1] = ["--config-path", str(recipe.parent)]
        name, folder = _option(argv, "--config-name", "-cn"), (2, str(recipe.parent))
    if folder is None or folder[1].startswith("pkg://"):
        return None
    index, value = folder
    bases = (program_dir, Path.cwd(), place("scripts").parent)
    folders = [path for path in (base / value for base in bases) if path.is_dir()]
    if not folders:
        raise ConfigError(f"--config-path: there is no folder '{value}'{_nearest(Path(value))}")
    stem = name[1].removesuffix(".yaml").removesuffix(".yml")
    files = [folder / f"{stem}{suffix}" for suffix in (".yaml", ".yml") for folder in folders]
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        names = {path.stem for folder in folders for path in folder.glob("*.y*ml")}
        hint = did_you_mean(stem, names)
        raise ConfigError(f"--config-name: there is no '{stem}.yaml' in {value}. {hint}")
    seen = found.parent if found.suffix == ".yaml" else _as_yaml(found)
    argv[index] = argv[index].replace(value, str(seen.resolve()))
    at, written = name
    argv[at] = argv[at].replace(written, stem)
    return seen / f"{stem}.yaml"


def _recipe(name: str, kinds: tuple[str, ...]) -> Path | None:
    """The recipe called `name`; says which one that is.

    Raises:
        ConfigError: there is none; the message has the nearest name.
    """
    if Path(name).parent != Path("."):
        return None
    found = named(name, kinds)
    if not found:
        stem, known = name.removesuffix(".yaml"), names(kinds)
        raise ConfigError(
            f"--config-name: no recipe is called '{stem}'. {did_you_mean(stem, known)} For a file "
            "of your own add --config-path FOLDER."
        )
    others = [file.parent.name for file in found[1:]]
    more = f" (also for {', '.join(others)}: --config-path scripts/{kinds[0]}/NAME)"
    print(f"recipe: {found[0]}{more if others else ''}", file=sys.stderr)
    return found[0]


def _as_yaml(file: Path) -> Path:
    """A folder that shows all of `file`'s, and `file` itself as `.yaml`, which Hydra insists on."""
    folder = Path(tempfile.mkdtemp(prefix="solo-config-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for entry in file.parent.iterdir():
        (folder / entry.name).symlink_to(entry.resolve())
    (folder / f"{file.stem}.yaml").symlink_to(file.resolve())
    return folder


def _quote_values(argv: list[str]) -> None:
    """Quote values with a `=` in them, such as our checkpoints' names, as Hydra wants it, in place.

    `key=run/name-ep=3.ckpt` is no valid argument of Hydra's; `key='run/name-ep=3.ckpt'` is.
    """
    for index, arg in enumerate(argv[1:], 1):
        key, equals, value = arg.partition("=")
        if not equals or arg.startswith("-") or "=" not in value or value[0] in "'\"[{$":
            continue
        value = value.replace("'", "\\'")
        argv[index] = f"{key}='{value}'"


def _import_plugins(argv: list[str], config: Path | None) -> None:
    """Import what `imports` names, in the YAML or as an argument, and installed extensions.

    Before Hydra reads the configuration, because what they register may be one of its groups.

    Raises:
        ConfigError: see `solo.registry.import_plugins`.
    """
    import yaml

    extensions.registered()
    text = config.read_text(encoding="utf-8", errors="replace") if config else ""
    written = [text] if "imports" in text else []
    for arg in argv[1:]:
        key, _, value = arg.lstrip("+").partition("=")
        written += [f"imports: {value}"] if key == "imports" else []
    for line in reversed(written):  # an argument wins over the file
        try:
            found = yaml.safe_load(line)
        except yaml.YAMLError:
            continue  # Hydra names the place
        if isinstance(found, dict) and "imports" in found:
            return import_plugins(found["imports"])


def _option(argv: list[str], *names: str) -> tuple[int, str] | None:
    """Position and value of an option written as `--name value` or `--name=value`."""
    for index, arg in enumerate(argv):
        for name in names:
            if arg == name and index + 1 < len(argv):
                return index + 1, argv[index + 1]
            if arg.startswith(f"{name}="):
                return index, arg.split("=", 1)[1]
    return None


def _nearest(path: Path) -> str:
    """` (...)` with names beside the first part of `path` that does not exist."""
    parent = next((p for p in path.parents if p.is_dir()), Path("."))
    part = path.relative_to(parent).parts[0]
    names = [entry.name for entry in parent.iterdir() if entry.is_dir()]
    hint = did_you_mean(part, names)
    return f". {hint}" if "Did you mean" in hint else " (looked in the current folder as well)"


def explain(error: BaseException, schema: type | None = None) -> str | None:
    """A short text for errors of Hydra, OmegaConf, YAML, Lightning's Trainer and the disk.

    Returns:
        None for anything else: a bug of ours, which keeps its traceback.
    """
    kind = f"{type(error).__module__}.{type(error).__name__}"
    if kind.endswith("MisconfigurationException"):
        return _machine(str(error))
    if isinstance(error, OSError) and (error.errno in _MACHINE_REFUSES or error.filename):
        return f"{error.strerror}: '{error.filename or 'no file named'}'"
    if isinstance(error, MemoryError) or "OutOfMemoryError" in kind or _NO_MEMORY in str(error):
        return (
            f"There is not enough memory ({str(error).splitlines()[0] if str(error) else kind}). "
            "Lower optimizer.batch_size or data.num_workers, or take another data.format."
        )
    if not kind.startswith(_COMPOSE):
        return None
    text = str(error).strip()
    refused = re.search(r"Could not override '([^']+)'", text)
    if refused and "To append to your config" in text:
        return _refused_key(refused.group(1), schema)
    group = re.search(r"Could not find '([^']+)'", text)
    if group:
        options = re.findall(r"^\t(.+)$", text.split("Available options")[-1], re.MULTILINE)
        folder, _, name = group.group(1).rpartition("/")
        hint = did_you_mean(name, [o.strip() for o in options if "=" not in o])
        return f"'{folder or name}' has no option '{name}'. {hint}"
    if refused and "No match in the defaults list" in text:
        return f"{text.splitlines()[0]} To add it write +{refused.group(1)}."
    if "No match in the defaults list" in text or "Multiple values for" in text:
        return text.splitlines()[0]
    return " ".join(line.strip() for line in text.splitlines() if line.strip())


def _machine(text: str) -> str:
    if "No supported gpu backend found" in text or "CUDAAccelerator" in text:
        return "accelerator=gpu, but this machine has no GPU: write accelerator=cpu"
    return " ".join(text.split())


def _refused_key(key: str, schema: type | None) -> str:
    """A key that the YAML does not have and that was written without `++`."""
    names = valid_keys(schema) if schema else set()
    parts = key.split(".")
    for depth in range(len(parts)):
        name, parent = ".".join(parts[: depth + 1]), ".".join(parts[:depth])
        here = {n.rpartition(".")[2] for n in names if n.rpartition(".")[0] == parent}
        if not depth and parts[0] not in here:
            from solo.args.check import trainer_keys

            here |= trainer_keys()
        if here and parts[depth] not in here:
            return f"unknown key '{name}'. {did_you_mean(parts[depth], here)}"
    if parts[0] in extensions.sections():
        return (
            f"'{key}' needs its section: add +{parts[0]}=NAME before it (--help lists the names), "
            "or take another name if that method has no such key"
        )
    return f"the YAML does not set '{key}': to add it write ++{key}=…"


def valid_keys(schema: type, path: str = "") -> set[str]:
    """All dotted keys of a program's schema, those of the sections of extensions included."""
    keys = set() if path else set(extensions.sections())
    for extension in () if path else extensions.registered():
        for section, methods in extension.schemas().items():
            for method in methods.values():
                keys |= valid_keys(method, section)
    hints = get_type_hints(schema)
    for item in fields(schema):
        name = f"{path}.{item.name}" if path else item.name
        keys.add(name)
        if is_dataclass(hints[item.name]):
            keys |= valid_keys(hints[item.name], name)
    return keys
