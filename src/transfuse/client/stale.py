"""ESTALE on the way to a file, as Linux treats it: the way is walked once more, and every name of it asked for.

A server answers ESTALE for a node that it knows no longer: the file was replaced or moved behind its back, and a name
that is still believed here leads to what was there before. That is no reason to fail, since the name itself may lead to
a file. So a call by path that ended with ESTALE is made a second time through `ClientBase.revalidating`, a view whose
look-ups believe nothing (LOOKUP_REVAL: fs/namei.c filename_lookup() and do_filp_open(), retry_estale() in
include/linux/namei.h). A second ESTALE is the answer. What is done by an open file is not tried again, there or here.
"""

from __future__ import annotations

import errno
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

if TYPE_CHECKING:
    from transfuse.client.base import ClientBase

__all__ = ["retries_stale"]

C = TypeVar("C", bound="ClientBase")
P = ParamSpec("P")
T = TypeVar("T")


def retries_stale(call: Callable[Concatenate[C, P], T]) -> Callable[Concatenate[C, P], T]:
    """A call by path, whose first argument is the client, that is made again, once, when it ends with ESTALE.

    It must have changed nothing by then: a server that does not know a node has done nothing to it.
    """

    @functools.wraps(call)
    def with_retry(client: C, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return call(client, *args, **kwargs)
        except OSError as error:
            if error.errno != errno.ESTALE or client.revalidates:
                raise
        return call(client.revalidating(), *args, **kwargs)

    return with_retry
