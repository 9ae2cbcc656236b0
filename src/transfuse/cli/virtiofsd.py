"""`transfuse virtiofsd`: virtiofsd's command line, for machines' managers that know no other server.

The options are those of virtiofsd 1.14 and what it still takes of the C daemon's -o; they are turned into words for
`transfuse serve`, which does the work. The defaults are virtiofsd's, not ours: no extended attributes, locks that stay
in the guest, and an end when the machine disconnects. An option that can't be honoured is refused by its name, in one
line; OPTIONS says for each what becomes of it, and docs/virtiofsd.md shows that table.
"""

from __future__ import annotations

import argparse
import json
import logging
import logging.handlers
import os
import resource
import sys
import sysconfig
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import transfuse
from transfuse.cli import serve
from transfuse.cli.daemon import SYSLOG_SOCKET
from transfuse.cli.errors import FAILED, OK, USAGE, CommandError, Parser
from transfuse.cli.mount import environment
from transfuse.cli.systemd import activated_socket
from transfuse.fs.xattrmap import parse_rules

__all__ = ["COMPAT", "OPTIONS", "Asked", "Option", "add", "capabilities", "description", "main", "read", "run", "words"]

VERSION = "1.14.0"
"""The virtiofsd whose options these are."""
FEATURES = ("migrate-precopy", "posix-acl-negotiation-mode", "separate-options")
"""What of docs/interop/vhost-user.json is true of this server."""
DESCRIPTION_FILE = "50-transfuse-virtiofsd.json"
LOG_LEVELS = {
    "off": logging.CRITICAL + 1, "error": logging.ERROR, "err": logging.ERROR, "warn": logging.WARNING,
    "info": logging.INFO, "debug": logging.DEBUG, "trace": logging.DEBUG,
}  # fmt: skip
MAX_WORKERS = 256
NO_ACLS = ":unsupported:all:system.posix_acl_:system.posix_acl_:"


@dataclass(frozen=True, slots=True)
class Option:
    """One option. `takes`: what stands for its value, "" if it has none; `optional`: the value if none is given.
    `check` says for a value that can't be honoured why not, and what to do."""

    name: str
    takes: str
    what: str
    """What becomes of it."""
    sets: str = ""
    """Which option it stands for, if not itself; "no OPTION": as if that had not been given."""
    optional: str | None = None
    check: Callable[[str], str | None] | None = None
    refused: str = ""
    """Why it is refused, whatever its value."""


def _of(*choices: str, **impossible: str) -> Callable[[str], str | None]:
    def check(value: str) -> str | None:
        if value in choices:
            return None
        return impossible.get(value.replace("-", "_")) or f"takes {', '.join(choices)}"

    return check


def _number(low: int, high: int) -> Callable[[str], str | None]:
    def check(value: str) -> str | None:
        good = value.isascii() and value.isdigit() and low <= int(value) <= high
        return None if good else f"takes a number, {low} to {high}"

    return check


def _rules(value: str) -> str | None:
    try:
        parse_rules(value)
    except ValueError as error:
        return str(error)
    return None


_LABELS = "the guest's labels are not set when files are made; --xattr alone passes security.selinux on"
_NAMESPACE = "there is no user namespace with a map of its own; use --translate-uid, or start it by unshare --map-auto"
_HANDLES = "migration goes by names; use find-paths"

OPTIONS: tuple[Option, ...] = (
    Option("shared-dir", "DIR", "the directory to serve; required"),
    Option("socket-path", "PATH", "where to listen; this, --fd or systemd's socket is required; no PATH.pid is made"),
    Option("socket", "PATH", "the old name of --socket-path", sets="socket-path"),
    Option("fd", "N", "an inherited listening socket"),
    Option("socket-group", "GROUP", "the socket's group, which may connect (mode 0660)"),
    Option("tag", "TAG", "the device's name, for front-ends that ask for it"),
    Option("thread-pool-size", "N", "most threads for each queue; 0: as `serve` does, one until it is held up",
           check=_number(0, MAX_WORKERS)),
    Option("cache", "POLICY", "auto, always, metadata (names and attributes as always, data not at all), never",
           check=_of("auto", "always", "metadata", "never", none="takes auto, always, metadata, never")),
    Option("allow-mmap", "", "with never and metadata: files can be mapped shared"),
    Option("writeback", "", "the guest collects writes"),
    Option("no-readdirplus", "", "listings without attributes"),
    Option("allow-direct-io", "", "O_DIRECT of the guest's reaches the host's file"),
    Option("xattr", "", "extended attributes; without it there are none"),
    Option("xattrmap", "RULES", "other names for them; implies --xattr", check=_rules),
    Option("posix-acl", "MODE", "never (default), auto, always (a guest that can't is refused); implies --xattr",
           optional="always", check=_of("never", "auto", "always")),
    Option("security-label", "MODE", "only never", optional="always", check=_of("never", auto=_LABELS, always=_LABELS)),
    Option("killpriv-v2", "", "the host clears setuid and setgid bits"),
    Option("no-killpriv-v2", "", "the guest does (default)", sets="no killpriv-v2"),
    Option("announce-submounts", "", "what is mounted in the directory has a device number of its own (default)"),
    Option("no-announce-submounts", "", "it has not, and SYNCFS is for the whole", sets="no announce-submounts"),
    Option("inode-file-handles", "MODE", "never, prefer (default), mandatory; fallback is an old name of prefer",
           check=_of("never", "prefer", "mandatory", "fallback")),
    Option("sandbox", "MODE", "namespace, none, and our own landlock; by default the best that can be had",
           check=_of("namespace", "none", "landlock", chroot="use landlock")),
    Option("seccomp", "ACTION", "kill, log, trap, none; by default kill where it can be had",
           check=_of("none", "kill", "log", "trap")),
    Option("modcaps", "CHANGES", "capabilities to keep or not: +sys_admin:-chown"),
    Option("uid-map", "MAP", "refused", refused=_NAMESPACE),
    Option("gid-map", "MAP", "refused", refused=_NAMESPACE.replace("uid", "gid")),
    Option("translate-uid", "TYPE:...", "other uids; not with --posix-acl"),
    Option("translate-gid", "TYPE:...", "other gids; not with --posix-acl"),
    Option("rlimit-nofile", "N", "the limit of open files; 0: the present one", check=_number(0, 1 << 30)),
    Option("preserve-noatime", "", "O_NOATIME of the guest's reaches the host, where the server may"),
    Option("readonly", "", "every change is EROFS"),
    Option("migration-mode", "MODE", "only find-paths", check=_of("find-paths", file_handles=_HANDLES)),
    Option("migration-on-error", "MODE", "only guest-error: what is not found again is ESTALE in the guest",
           check=_of("guest-error", abort="what is not found again is ESTALE in the guest; use guest-error")),
    Option("migration-verify-handles", "", "refused", refused=_HANDLES),
    Option("migration-confirm-paths", "", "refused", refused="names are kept right all along; leave it out"),
    Option("log-level", "LEVEL", "off, error, warn, info, debug, trace (as debug)",
           check=_of(*LOG_LEVELS)),
    Option("syslog", "", "the log goes to syslog"),
)  # fmt: skip

COMPAT: dict[str, str] = {
    "source": "shared-dir", "cache": "cache", "sandbox": "sandbox", "modcaps": "modcaps", "xattrmap": "xattrmap",
    "log_level": "log-level", "announce_submounts": "announce-submounts",
    "no_announce_submounts": "no-announce-submounts", "allow_direct_io": "allow-direct-io",
    "no_allow_direct_io": "no allow-direct-io", "killpriv_v2": "killpriv-v2", "no_killpriv_v2": "no-killpriv-v2",
    "posix_acl": "posix-acl", "no_posix_acl": "no posix-acl", "security_label": "security-label",
    "no_security_label": "no security-label", "readdirplus": "no no-readdirplus", "no_readdirplus": "no-readdirplus",
    "writeback": "writeback", "no_writeback": "no writeback", "xattr": "xattr", "no_xattr": "no xattr",
    "no_posix_lock": "", "no_flock": "",
}  # fmt: skip
"""What the words of -o stand for; "": that is so anyway, "no ...": as if the option had not been given."""

EPILOG = f"""\
examples:
  transfuse virtiofsd --shared-dir /srv/vm --socket-path /run/vm.sock --xattr
  transfuse virtiofsd --shared-dir ~/data --fd 3 --readonly --translate-uid map:0:1000:1

also: -o WORD[=VALUE][,...] with the C daemon's names; -d (--log-level debug); -f (it stays in the foreground anyway);
  --print-capabilities, --print-description, -h, -V

A manager that reads descriptions finds it after:
  transfuse virtiofsd --print-description > /etc/qemu/vhost-user/{DESCRIPTION_FILE}

`transfuse serve` has more: several queues, a DAX window, guests that outlive the server. The table of all options is in
docs/virtiofsd.md."""


class _Words(argparse.Action):
    """Keeps options in their order."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: object, flag: str | None = None
    ) -> None:
        namespace.given = [*getattr(namespace, "given", []), (self.dest, values)]


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The parser of `virtiofsd`."""
    parser = commands.add_parser(
        "virtiofsd", help="serve a directory to a virtual machine, by virtiofsd's options",
        description=f"A virtio-fs server with the command line of virtiofsd {VERSION}.", epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    for option in OPTIONS:
        if option.takes:
            parser.add_argument(
                f"--{option.name}", action=_Words, dest=option.name, metavar=option.takes, help=option.what,
                nargs=None if option.optional is None else "?", const=option.optional, default=argparse.SUPPRESS,
            )  # fmt: skip
        else:
            parser.add_argument(
                f"--{option.name}", action=_Words, dest=option.name, nargs=0, help=option.what,
                default=argparse.SUPPRESS,
            )  # fmt: skip
    quiet = argparse.SUPPRESS
    parser.add_argument("-o", action=_Words, dest="-o", metavar="WORD", help=quiet, default=quiet)
    for flag in ("-d", "-f"):
        parser.add_argument(flag, action=_Words, dest=flag, nargs=0, help=quiet, default=quiet)
    parser.add_argument("--print-capabilities", action="store_true", help="what this is, in JSON, for the manager")
    parser.add_argument("--print-description", action="store_true", help="the file that tells managers of it")
    parser.add_argument("-V", "--version", action="version", version=f"transfuse {transfuse.__version__} as virtiofsd")
    parser.set_defaults(run=run, failed=FAILED, given=[])


def capabilities() -> dict[str, object]:
    """What --print-capabilities says: VhostUserBackendCapabilities of QEMU's vhost-user.json."""
    return {"type": "fs", "features": list(FEATURES)}


def description() -> dict[str, object]:
    """The description file. Its binary is called with options alone, so it has to be a program of its own."""
    return {
        "description": f"transfuse {transfuse.__version__} vhost-user-fs",
        "type": "fs",
        "binary": os.path.join(sysconfig.get_path("scripts"), "transfuse-virtiofsd"),
        "features": list(FEATURES),
    }


class Asked:
    """What was asked for, in the end: of options that contradict each other the last counts."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.translate: dict[str, list[str]] = {"translate-uid": [], "translate-gid": []}

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def take(self, name: str, value: str) -> None:
        """One option, by its name. CommandError if it can't be honoured."""
        option = _BY_NAME[name]
        if option.refused:
            raise CommandError(f"option --{name}", "can't be honoured", option.refused, USAGE)
        why = option.check(value) if option.check is not None else None
        if why is not None:
            raise CommandError(f"option --{name} {value}", "can't be honoured", why, USAGE)
        target = option.sets or name
        if target.startswith("no "):
            self.values.pop(target[3:], None)
            if target == "no announce-submounts":
                self.values["no-announce-submounts"] = ""
        elif target in self.translate:
            self.translate[target].append(value)
        else:
            if target == "announce-submounts":
                self.values.pop("no-announce-submounts", None)
            self.values[target] = value

    def take_compat(self, words: str) -> None:
        """What stands behind -o. CommandError for words that say nothing to virtiofsd any more."""
        for word in filter(None, words.split(",")):
            name, _, value = word.partition("=")
            if name == "debug":
                self.take("log-level", "debug")
                continue
            if name not in COMPAT:
                raise CommandError(f"option -o {word}", "can't be honoured", f"-o takes {', '.join(COMPAT)}", USAGE)
            target = COMPAT[name]
            if target.startswith("no "):
                self.values.pop(target[3:], None)
            elif target:
                option = _BY_NAME[target]
                if option.takes and option.optional is None and not value:
                    raise CommandError(f"option -o {word}", "needs a value", f"give it as -o {name}=...", USAGE)
                value = "never" if (name, value) == ("cache", "none") else value
                self.take(target, value or option.optional or "")


_BY_NAME = {option.name: option for option in OPTIONS}


def read(given: Iterable[tuple[str, object]]) -> Asked:
    """Options in the order in which they were given."""
    asked = Asked()
    for name, value in given:
        if name == "-o":
            asked.take_compat(str(value))
        elif name == "-d":
            asked.take("log-level", "debug")
        elif name != "-f":
            asked.take(name, value if isinstance(value, str) else "")
    return asked


def words(asked: Asked, activated: int | None) -> list[str]:
    """The same for `transfuse serve`. `activated`: a socket that the service manager has opened. CommandError for what
    is missing, and for what excludes each other."""
    values = asked.values
    if "shared-dir" not in asked:
        raise CommandError("virtiofsd", "--shared-dir is missing", "say which directory to serve", USAGE)
    source = os.path.abspath(values["shared-dir"])
    if not os.path.exists(source):
        raise CommandError(f"--shared-dir {values['shared-dir']}", "no such directory", "name an existing one", USAGE)
    result = [source, "--once", *_where(values, activated)]
    for name in ("socket-group", "tag", "sandbox", "seccomp"):
        if name in asked:
            result += [f"--{name}={values[name]}"]
    if "modcaps" in asked:
        result += [f"--modcaps={values['modcaps']}"]
    if "rlimit-nofile" in asked:
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        result += [f"--rlimit-nofile={int(values['rlimit-nofile']) or soft}"]
    if int(values.get("thread-pool-size", "0")):
        result += ["--workers", values["thread-pool-size"]]
    if "readonly" in asked:
        result += ["--read-only"]
    if values.get("log-level") in ("debug", "trace"):
        result += ["--debug"]
    return [*result, *_caching(asked), *_names(asked), *_inside(asked)]


def _where(values: Mapping[str, str], activated: int | None) -> list[str]:
    if "socket-path" in values and "fd" in values:
        raise CommandError("options --socket-path and --fd", "name two sockets", "give one of them", USAGE)
    if "socket-path" in values:
        return [f"--socket-path={values['socket-path']}"]
    if "fd" in values:
        return [f"--fd={values['fd']}"]
    if activated is not None:
        return [f"--fd={activated}"]
    raise CommandError("virtiofsd", "--socket-path is missing", "say where to listen, or give --fd", USAGE)


def _caching(asked: Asked) -> list[str]:
    policy = asked.values.get("cache", "auto")
    # virtiofsd never says that a name does not exist in a way the guest may remember.
    result = ["--cache", "always" if policy == "metadata" else policy, "--negative-timeout=0"]
    if policy == "metadata":
        result.append("--direct-io")
    if "writeback" in asked:
        result.append("--writeback")
    return result


def _names(asked: Asked) -> list[str]:
    """Attributes and ids."""
    acl = asked.values.get("posix-acl", "never")
    translations = [f"--{name}={rule}" for name, rules in asked.translate.items() for rule in rules]
    if acl != "never":
        if translations:
            raise CommandError("option --posix-acl", "excludes --translate-uid and -gid", "leave one out", USAGE)
        result = ["-oposix_acl=yes", "-oxattr=yes"]
        if "xattrmap" in asked:
            result.append(f"--xattrmap={asked.values['xattrmap']}")
        return [*result, "--require-acl"] if acl == "always" else result
    result = ["-oposix_acl=no", *translations]
    if "xattr" not in asked and "xattrmap" not in asked:
        return [*result, "-oxattr=no"]
    return [*result, "-oxattr=yes", f"--xattrmap={NO_ACLS}{asked.values.get('xattrmap', ':ok:all:::')}"]


def _inside(asked: Asked) -> list[str]:
    """What the directory's own arguments are. Locks stay in the guest, as with virtiofsd."""
    handles = asked.values.get("inode-file-handles", "prefer")
    arguments = {
        "flock": "no",
        "posix_locks": "no",
        "submounts": "no" if "no-announce-submounts" in asked else "yes",
        "file_handles": "prefer" if handles == "fallback" else handles,
        "keep_noatime": "yes" if "preserve-noatime" in asked else "no",
        "o_direct": "yes" if "allow-direct-io" in asked else "no",
        "direct_mmap": "yes" if "allow-mmap" in asked else "no",
        "killpriv": "yes" if "killpriv-v2" in asked else "no",
    }
    if "no-readdirplus" in asked:
        arguments["readdirplus"] = "no"
    return [f"-o{name}={value}" for name, value in arguments.items()]


def _set_up_log(asked: Asked) -> None:
    """The level, and syslog, once the log is there."""
    log = logging.getLogger("transfuse")
    log.setLevel(LOG_LEVELS[asked.values.get("log-level", "info")])
    if "syslog" in asked and os.path.exists(SYSLOG_SOCKET):
        handler = logging.handlers.SysLogHandler(SYSLOG_SOCKET, logging.handlers.SysLogHandler.LOG_DAEMON)
        handler.setFormatter(logging.Formatter(f"transfuse-virtiofsd[{os.getpid()}]: %(name)s: %(message)s"))
        for old in list(log.handlers):
            log.removeHandler(old)
            old.close()
        log.addHandler(handler)


def run(args: argparse.Namespace) -> int:
    """Serve as virtiofsd would, or say what can be served."""
    if args.print_capabilities or args.print_description:
        print(json.dumps(capabilities() if args.print_capabilities else description(), indent=2))
        return OK
    asked = read(args.given)
    parser: argparse.ArgumentParser = Parser(prog="transfuse virtiofsd")
    serve.add(parser.add_subparsers())
    try:
        activated = activated_socket(environment())
    except ValueError as error:
        raise CommandError("LISTEN_FDS", str(error), "pass on one socket", USAGE) from error
    return serve.run(parser.parse_args(["serve", *words(asked, activated)]), log_is_ready=lambda: _set_up_log(asked))


def main() -> int:
    """`transfuse-virtiofsd`, which managers call with options alone."""
    from transfuse.cli.main import main as run_command

    return run_command(["virtiofsd", *sys.argv[1:]])
