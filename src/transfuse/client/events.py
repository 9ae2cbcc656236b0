"""Notifications applied to the caches, with the answers Linux gives (fs/fuse/notify.c): OSError ENOENT for what is not
known here, EBUSY never, since nothing can be mounted on a client's name.

There is no page cache here: STORE's bytes are not kept (its change of size is), and RETRIEVE is answered with nothing.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from transfuse.client.walk import fail
from transfuse.session.events import Event
from transfuse.wire.flags import FUSE_EXPIRE_ONLY
from transfuse.wire.opcodes import NotifyCode

if TYPE_CHECKING:
    from transfuse.client.exchange import Exchange

__all__ = ["apply_event"]


def apply_event(exchange: Exchange, event: Event) -> None:
    """Do what one notification says. Runs in the thread that received it and asks the server nothing."""
    cache = exchange.cache
    match event.code:
        case NotifyCode.INVAL_INODE | NotifyCode.STORE:
            node = cache.node(event.nodeid)
            if node is None:
                raise fail(errno.ENOENT)
            node.link_target = None
            cache.invalidate_attr(node)
        case NotifyCode.INVAL_ENTRY:
            parent = cache.node(event.nodeid)
            if parent is None or not parent.is_dir:
                raise fail(errno.ENOENT)
            if event.flags & FUSE_EXPIRE_ONLY:
                known = cache.expire(parent, event.name)
            else:
                known = cache.drop(parent, event.name)
            if not known:
                raise fail(errno.ENOENT, event.name)
            cache.invalidate_attr(parent)
        case NotifyCode.DELETE:
            parent = cache.node(event.nodeid)
            found = parent.names.get(event.name) if parent is not None else None
            if parent is None or found is None or found.node is None or found.node.nodeid != event.child:
                raise fail(errno.ENOENT, event.name)
            if any(name.node is not None for name in list(found.node.names.values())):
                raise fail(errno.ENOTEMPTY, event.name)
            cache.drop_children(found.node)
            cache.drop(parent, event.name)
            cache.invalidate_attr(parent)
            cache.invalidate_attr(found.node)
        case NotifyCode.RETRIEVE:
            if cache.node(event.nodeid) is None:
                raise fail(errno.ENOENT)
            exchange.send(exchange.session.notify_reply(event, event.offset, b""))
        case NotifyCode.RESEND:
            for message in exchange.session.resend():
                exchange.send(message)
        case NotifyCode.INC_EPOCH:
            cache.epoch += 1
        case NotifyCode.PRUNE:
            cache.drop_aliases(frozenset(event.nodeids))
        case NotifyCode.POLL:
            pass  # nobody here sleeps in poll(): a waiter asks again by itself
