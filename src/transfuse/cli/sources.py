"""What SOURCE may be, and how one becomes a filesystem.

    PATH                       a directory of this machine
    memory:                    an empty filesystem in memory
    python:package.module:Class, python:file.py:Class
                               your own class, made with -o name=value as keyword arguments
    unix:/path.sock            a server that listens there (for ls, cat, stat, tree and cp)
    vhost-user:/path.sock      a virtio-fs server, in place of a virtual machine (likewise)

A text that names something existing is a path, whatever it looks like; otherwise a leading `word:` is the kind.
Arguments of a class are converted by their annotations (int with K, M, G, T; float; bool; str; bytes; paths), and
checked here, since this is where they enter.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import os
import re
import stat
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transfuse.cli.errors import USAGE, CommandError, one_line
from transfuse.cli.options import Settings, Value, refuse_extra
from transfuse.clients import SERVERS
from transfuse.errors import RemoteProtocolError
from transfuse.fs.base import Filesystem
from transfuse.fs.path import PathFilesystem

if TYPE_CHECKING:
    from transfuse.client import Client

__all__ = ["KINDS", "Source", "check_extra", "connected", "make_filesystem", "parse_source"]

AnyFilesystem = Filesystem | PathFilesystem

KINDS = ("a directory", "memory:", "python:MODULE:CLASS", "python:FILE.py:CLASS", "unix:SOCKET", "vhost-user:SOCKET")
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*):(.*)", re.DOTALL)
_SUFFIXES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_TRUE = {"1": True, "yes": True, "true": True, "on": True, "0": False, "no": False, "false": False, "off": False}
# How the options of the table are called in Features, which any filesystem has.
_FEATURES = {
    "entry_timeout": "entry_timeout_s",
    "attr_timeout": "attr_timeout_s",
    "negative_timeout": "negative_timeout_s",
    "writeback": "writeback_cache",
}
_HOSTDIR = {
    "cache": "cache",
    "entry_timeout": "entry_timeout_s",
    "attr_timeout": "attr_timeout_s",
    "negative_timeout": "negative_timeout_s",
    "writeback": "writeback",
    "direct_io": "direct_io",
    "no_open": "no_open",
}
_OF_TABLE = {*_HOSTDIR.values(), "passthrough"}


@dataclass(frozen=True, slots=True)
class Source:
    """A SOURCE, taken apart: `kind` is "path", "memory", "python" or one of SERVERS, `rest` what belongs to it."""

    text: str
    kind: str
    rest: str


def parse_source(text: str) -> Source:
    """Take SOURCE apart. CommandError for a kind that does not exist, or a path that is no directory."""
    if not text:
        raise CommandError("SOURCE", "is empty", f"give one of: {_kinds()}", USAGE)
    try:
        mode = os.stat(text).st_mode
    except FileNotFoundError as error:
        if os.path.islink(text):
            raise CommandError(text, "is a symbolic link to nothing", "name an existing directory", USAGE) from error
    except OSError as error:
        raise CommandError(text, error.strerror or str(error), "name a directory you may enter", USAGE) from error
    else:
        if not stat.S_ISDIR(mode):
            raise CommandError(text, "is no directory", "only directories can be served by path", USAGE)
        return Source(text, "path", text)
    match = _SCHEME.fullmatch(text)
    if match is None or "/" in match[1]:
        raise CommandError(text, "no such directory", f"SOURCE can be {_kinds()}", USAGE)
    kind, rest = match.groups()
    if kind not in ("memory", "python", *SERVERS):
        raise CommandError(
            text, f"there is no such path, and no kind of source called {kind}:", f"SOURCE can be {_kinds()}", USAGE
        )
    if kind in SERVERS and not rest:
        raise CommandError(text, "names no socket", f"write {kind}:/path.sock", USAGE)
    if kind == "memory" and rest:
        raise CommandError(
            text, "memory: has nothing after the colon", "its size is an option: -o size_bytes=64M", USAGE
        )
    return Source(text, kind, rest)


def _kinds() -> str:
    return ", ".join(KINDS)


def make_filesystem(source: Source, settings: Settings, *, search_here: bool = True) -> AnyFilesystem:
    """The filesystem that SOURCE names, with its options applied.

    `search_here`: python:MODULE is also looked for in the current directory (never when mount(8) calls). Raises
    CommandError or MountOptionError with one line.
    """
    values = settings.for_source()
    if source.kind == "path":
        from transfuse.filesystems.hostdir import HostDirectory

        arguments: dict[str, Any] = {_HOSTDIR[name]: value for name, value in values.items() if name in _HOSTDIR}
        if values.get("no_passthrough"):
            arguments["passthrough"] = False
        return _construct(HostDirectory, source, settings, (os.path.abspath(source.rest),), arguments)
    if source.kind in SERVERS:
        raise CommandError(
            source.text, "is a server already", "give a directory, memory: or python:MODULE:CLASS", USAGE
        )
    if source.kind == "memory":
        from transfuse.filesystems.memory import MemoryFilesystem

        cls: type[AnyFilesystem] = MemoryFilesystem
    else:
        cls = _load_class(source, search_here)
    # A class that has an argument of that name decides itself what the option means.
    own = set(_parameters(cls))
    arguments = {name: value for name, value in values.items() if name in own}
    filesystem = _construct(cls, source, settings, (), arguments)
    _apply_features(filesystem, source, {name: value for name, value in values.items() if name not in own})
    return filesystem


def check_extra(source: Source, settings: Settings) -> None:
    """MountOptionError for an option that nobody knows, without making the filesystem. What a python: class takes is
    its own affair and is not looked at."""
    if source.kind == "python":
        return
    known: set[str] = set()
    if source.kind == "memory":
        from transfuse.filesystems.memory import MemoryFilesystem

        known = set(_parameters(MemoryFilesystem))
    elif source.kind == "path":
        from transfuse.filesystems.hostdir import HostDirectory

        known = set(_parameters(HostDirectory)) - _OF_TABLE
    unknown = {name: value for name, value in settings.extra.items() if name not in known}
    refuse_extra(replace(settings, extra=unknown), known)


def _apply_features(filesystem: AnyFilesystem, source: Source, values: Mapping[str, Value]) -> None:
    changes: dict[str, Any] = {}
    for name, value in values.items():
        if name == "no_passthrough":
            changes["passthrough"] = False
        elif name in _FEATURES:
            changes[_FEATURES[name]] = value
        else:
            raise CommandError(
                f"option {name}", f"is for directories; {source.text} does not know it", "leave it out", USAGE
            )
    if changes:
        filesystem.features = replace(filesystem.features, **changes)


# -- classes ----------------------------------------------------------------------------------------------------------


def _load_class(source: Source, search_here: bool) -> type[AnyFilesystem]:
    module_name, colon, class_name = source.rest.rpartition(":")
    if not colon or not module_name or not class_name:
        raise CommandError(
            source.text, "names no class", "write python:package.module:Class or python:file.py:Class", USAGE
        )
    module = _load_module(source, module_name, search_here)
    found = getattr(module, class_name, None)
    if not isinstance(found, type):
        candidates = [name for name, value in vars(module).items() if _is_filesystem_class(value) and name[0] != "_"]
        mine = [name for name in candidates if vars(module)[name].__module__ == module.__name__] or candidates
        near = difflib.get_close_matches(class_name, mine, n=1)
        why = f"{module_name} has no class {class_name}" if found is None else f"{class_name} is no class"
        hint = (
            f"did you mean {near[0]}?"
            if near
            else f"it has {', '.join(mine)}"
            if mine
            else "it has no filesystems at all"
        )
        raise CommandError(source.text, why, hint, USAGE)
    if not _is_filesystem_class(found):
        raise CommandError(
            source.text,
            f"{class_name} is not a Filesystem",
            "derive it from transfuse.Filesystem or PathFilesystem",
            USAGE,
        )
    return found


def _is_filesystem_class(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, (Filesystem, PathFilesystem))


def _load_module(source: Source, name: str, search_here: bool) -> types.ModuleType:
    if name.endswith(".py"):
        path = os.path.abspath(name)
        spec = importlib.util.spec_from_file_location(Path(path).stem.replace(".", "_"), path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        load = spec.loader.exec_module
        sys.modules.setdefault(spec.name, module)
    else:
        if not all(part.isidentifier() for part in name.split(".")):
            raise CommandError(
                source.text, f"{name} is no module name", "write package.module, or a path ending in .py", USAGE
            )
        here = os.getcwd()
        if search_here and here not in sys.path:
            sys.path.append(here)
        module = types.ModuleType(name)

        def load(module: types.ModuleType) -> None:
            importlib.import_module(name)

    try:
        load(module)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise CommandError(
                source.text, f"no module {error.name}", "install it, or name its file: python:FILE.py:CLASS", USAGE
            ) from error
        raise CommandError(source.text, f"{name} needs the module {error.name}", "install it", USAGE) from error
    except FileNotFoundError as error:
        raise CommandError(source.text, f"{name}: no such file", "name an existing file or module", USAGE) from error
    except Exception as error:
        why = one_line(f"{type(error).__name__} while loading {name}: {error}")
        raise CommandError(source.text, why, "mend it; --debug shows where", USAGE) from error
    return module if name.endswith(".py") else sys.modules[name]


def _parameters(cls: type) -> dict[str, inspect.Parameter]:
    """Arguments of the constructor that can be given by name."""
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    try:
        signature = inspect.signature(cls)
    except (TypeError, ValueError):
        return {}
    return {name: p for name, p in signature.parameters.items() if p.kind in by_name}


def _construct(
    cls: type[Any], source: Source, settings: Settings, given: tuple[object, ...], arguments: dict[str, Any]
) -> AnyFilesystem:
    parameters = dict(list(_parameters(cls).items())[len(given) :])
    for name in arguments.keys() | (_OF_TABLE if source.kind == "path" else set()):
        parameters.pop(name, None)  # given by the table's options, not a second time under its own name
    refuse_extra_of = {name: value for name, value in settings.extra.items() if name not in parameters}
    if refuse_extra_of:
        refuse_extra(replace(settings, extra=refuse_extra_of), parameters)
    hints = _hints(cls)
    for name, text in settings.extra.items():
        parameter = parameters[name]
        hint = hints.get(name, type(parameter.default) if parameter.default not in (None, parameter.empty) else str)
        try:
            arguments[name] = convert(text, hint)
        except ValueError as error:
            given_text = name if text is None else f"{name}={text}"
            raise CommandError(f"option {given_text}", str(error), code=USAGE) from error
    missing = [n for n, p in parameters.items() if p.default is p.empty and n not in arguments]
    if missing:
        wanted = ",".join(f"{name}=..." for name in missing)
        raise CommandError(source.text, f"{cls.__name__} needs {', '.join(missing)}", f"give -o {wanted}", USAGE)
    try:
        made = cls(*given, **arguments)
    except OSError:
        raise
    except Exception as error:
        why = one_line(f"{cls.__name__} can't be made: {type(error).__name__}: {error}")
        raise CommandError(source.text, why, "--debug shows where", USAGE) from error
    assert isinstance(made, (Filesystem, PathFilesystem))
    return made


def _hints(cls: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls.__init__)  # type: ignore[misc]
    except (NameError, TypeError, AttributeError):
        return {}  # annotations that only a type checker can read: take the default's type, or str


def convert(text: str | None, hint: Any) -> Any:
    """The value for an argument annotated `hint`. ValueError says what it takes."""
    members = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if bool in members and (text is None or text.lower() in _TRUE):
        return True if text is None else _TRUE[text.lower()]
    if text is None:
        raise ValueError("needs a value")
    reasons = []
    for member in members:
        if member is int:
            number = re.fullmatch(r"([0-9]{1,18})([kmgt]?)(i?b)?", text.lower())
            if number:
                return int(number[1]) * _SUFFIXES[number[2]]
            reasons.append("a whole number, with K, M, G or T behind it if it is a size")
        elif member is float:
            try:
                return float(text)
            except ValueError:
                reasons.append("a number")
        elif member is bool:
            reasons.append("yes or no")
    for member in members:
        if member in (str, Any, inspect.Parameter.empty):
            return text
        if member is bytes:
            return os.fsencode(text)
        if member is Path or typing.get_origin(member) is os.PathLike or member is os.PathLike:
            return Path(text)
        if typing.get_origin(member) is typing.Literal:
            if text in typing.get_args(member):
                return text
            reasons.append(" or ".join(map(str, typing.get_args(member))))
    raise ValueError(f"takes {' or '.join(reasons)}" if reasons else "can't be given on the command line")


# -- looking into a source without a mount -----------------------------------------------------------------------------


@contextmanager
def connected(text: str, settings: Settings) -> Iterator[Client]:
    """A client of SOURCE: over a wire to a server, else over memory to one in this process."""
    from transfuse.client import Client
    from transfuse.clients import open_wire

    source = parse_source(text)
    if source.kind in SERVERS:
        refuse_extra(settings)
        try:
            wire = open_wire(source.kind, source.rest)
        except OSError as error:
            why = error.strerror or str(error)
            raise CommandError(source.text, why, "is a server listening there, and are you its user?", USAGE) from error
        client = Client(wire)
        try:
            client.connect()
        except RemoteProtocolError as error:
            raise CommandError(source.text, str(error), "is that a virtio-fs server?") from error
        except ConnectionResetError as error:
            raise CommandError(source.text, "the server hung up", "its log says why: too many clients?") from error
        with client:
            yield client
        return
    from transfuse.server import Server
    from transfuse.transports.memory import MemoryTransport

    transport = MemoryTransport()
    with Server(make_filesystem(source, settings), transport), Client(transport.client) as client:
        yield client
