"""What every part of the client stands on: asking as somebody, looking names up, attributes.

A `ClientBase` is one user's view (`creds`) of a connection whose exchange and cache all views share. Everything here
speaks of nodes; paths are the affair of the parts above (namespace, metadata, files).
"""

from __future__ import annotations

import errno
import itertools
import struct
from collections.abc import Sequence
from typing import Any, Self

from transfuse.client.caches import Cache, Node
from transfuse.client.dax import DaxRanges
from transfuse.client.exchange import Exchange
from transfuse.client.walk import Path, fail
from transfuse.errors import RemoteProtocolError
from transfuse.session.answers import ATTR_ATTR, check_attr
from transfuse.session.client import Credentials, Reply
from transfuse.session.negotiate import Connection
from transfuse.wire import flags as f
from transfuse.wire.flags import FUSE_EXT_GROUPS
from transfuse.wire.layout import Buffer
from transfuse.wire.opcodes import Opcode

__all__ = ["ClientBase"]

NAME_MAX = 1024
"""Longest name sent; NAME_MAX_BIG when requests may have more than one page (fs/fuse/inode.c)."""
NAME_MAX_BIG = 4095
_GETATTR = int(Opcode.GETATTR)
_LOOKUP = int(Opcode.LOOKUP)
_OWNERS = itertools.count(1)


class ClientBase:
    """One user's view of a connection."""

    exchange: Exchange
    cache: Cache
    creds: Credentials
    lock_owner: int
    """Who owns POSIX locks: one number for each view, as each process is one owner."""
    name_max: int
    dax: DaxRanges | None = None
    """Files that the server marks are read through this."""
    revalidates = False
    """Whether no name is believed without asking: see transfuse.client.stale."""
    _lasting: Self | None = None

    def _init_view(self, exchange: Exchange, creds: Credentials) -> None:
        self.exchange = exchange
        self.cache = exchange.cache
        self.creds = creds
        self.lock_owner = new_owner()
        connection = exchange.session.connection
        self.name_max = NAME_MAX_BIG if connection is None or connection.max_pages > 1 else NAME_MAX

    @property
    def connection(self) -> Connection:
        """What was agreed with the server; ConnectionError before that."""
        connection = self.exchange.session.connection
        if connection is None:
            raise ConnectionError(errno.ENOTCONN, "not connected")
        return connection

    def revalidating(self) -> Self:
        """The same user's view, for one call in which no name is believed without asking."""
        view = object.__new__(type(self))
        view.__dict__.update(self.__dict__)
        view.revalidates = True
        view._lasting = self
        return view

    @property
    def lasting(self) -> Self:
        """The view that outlives the call: what open files and listings keep."""
        return self._lasting or self

    # -- asking -------------------------------------------------------------------------------------------------------

    def ask(
        self,
        opcode: int,
        node: Node,
        args: Sequence[int] = (),
        names: Sequence[bytes] = (),
        payload: Buffer = b"",
        extensions: bytes = b"",
        path: Path | None = None,
        timeout_s: float | None = -1,
    ) -> Reply:
        """One request about `node` as this user; an error answer raises OSError with `path`."""
        reply = self.exchange.call(opcode, node.nodeid, args, names, payload, self.creds, extensions, timeout_s)
        if reply.error:
            raise fail(reply.error, path)
        return reply

    # -- names --------------------------------------------------------------------------------------------------------

    def check_name(self, name: bytes) -> None:
        """ENAMETOOLONG for a name that is never sent."""
        if len(name) > self.name_max:
            raise fail(errno.ENAMETOOLONG, name[:64] + b"...")

    def lookup(self, parent: Node, name: bytes, *, fresh: bool = False) -> Node | None:
        """The node of a name, None where there is none. `fresh`: ask, whatever is remembered (LOOKUP_REVAL).

        Caches the answer for the timeouts the server gave. Errors but ENOENT are raised.
        """
        if not fresh and not self.revalidates:
            found = self.cache.find(parent, name)
            if found is not None:
                node = found.node
                if node is not None and node.from_plus:
                    node.from_plus = False
                    parent.advise_plus = True
                return node
        sample = self.cache.version
        reply = self.exchange.call(_LOOKUP, parent.nodeid, (), (name,), b"", self.creds)
        if reply.error:
            if reply.error not in (errno.EINTR, errno.ENOMEM):
                self.cache.drop(parent, name)
            if reply.error == errno.ENOENT:
                return None
            raise fail(reply.error, name)
        entry = reply.values
        if not entry[0]:
            self.cache.remember(parent, name, None, entry[2], entry[4])
            return None
        node = self.cache.instantiate(entry, sample)
        self.cache.remember(parent, name, node, entry[2], entry[4])
        parent.advise_plus = True
        return node

    def lookup_sure(self, parent: Node, name: bytes) -> Node | None:
        """As `lookup`, for a name about to be made or replaced: that it is there is not believed without asking
        (Linux's LOOKUP_EXCL and LOOKUP_RENAME_TARGET); that it is missing is, since the server will object if not."""
        found = self.cache.find(parent, name)
        if found is not None and found.node is None and not self.revalidates:
            return None
        return self.lookup(parent, name, fresh=True)

    def made(self, parent: Node, name: bytes | None, reply: Reply, sample: int, kind: int | None) -> Node:
        """The node that a creating operation answered with; `parent` has changed."""
        entry = reply.values
        self.cache.invalidate_attr(parent)
        node = self.cache.instantiate(entry, sample, kind)
        if name is not None:
            self.cache.remember(parent, name, node, entry[2], entry[4])
        return node

    def create_extensions(self, parent: Node) -> bytes:
        """The one supplementary group that a creating request carries: the parent's, when the user is in it."""
        creds = self.creds
        group = parent.attr[12]
        if group == creds.gid or group not in creds.groups or not self.connection.has(f.FUSE_CREATE_SUPP_GROUP):
            return b""
        return struct.pack(self.connection.order + "IIII", 16, FUSE_EXT_GROUPS, 1, group)

    def masked(self, mode: int) -> int:
        """`mode` for a creating request: without DONT_MASK the umask is applied here."""
        return mode if self.connection.has(f.FUSE_DONT_MASK) else mode & ~self.creds.umask

    def node_readlink(self, node: Node) -> bytes:
        """The target of a link; remembered where CACHE_SYMLINKS allows, until the link's attributes change."""
        target = node.link_target
        if target is None:
            target = self.ask(Opcode.READLINK, node).data
            if self.connection.has(f.FUSE_CACHE_SYMLINKS):
                node.link_target = target
        return target

    # -- attributes ---------------------------------------------------------------------------------------------------

    def attributes(self, node: Node, fh: int | None = None, *, fresh: bool = False) -> tuple[Any, ...]:
        """The sixteen values of fuse_attr: remembered ones while the server lets them be, else asked for."""
        if not fresh and self.cache.attr_is_valid(node):
            return node.attr
        sample = self.cache.version
        args = (0, 0) if fh is None else (f.FUSE_GETATTR_FH, fh)
        return self.accept_attributes(node, self.ask(_GETATTR, node, args), sample)

    def accept_attributes(self, node: Node, reply: Reply, sample: int) -> tuple[Any, ...]:
        """Check and remember the attr_out of a GETATTR or SETATTR."""
        values = reply.values
        check_attr(values, ATTR_ATTR, "attr_out.attr")
        attr = values[ATTR_ATTR:]
        if (attr[9] ^ node.mode) & 0o170000:
            raise RemoteProtocolError(f"attr_out.attr.mode: node {node.nodeid} of {node.mode:#o} became {attr[9]:#o}")
        self.cache.apply_attr(node, attr, values[0], values[1], sample)
        return attr


def new_owner() -> int:
    """A lock owner nobody else has; scattered as Linux's are, so that no server takes it for a small number."""
    return (next(_OWNERS) * 0x9E37_79B9_7F4A_7C15) & 0xFFFF_FFFF_FFFF_FFFF
