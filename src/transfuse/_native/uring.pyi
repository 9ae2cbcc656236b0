from collections.abc import Callable
from mmap import mmap

from transfuse.transports.base import Handler
from transfuse.transports.uring import UringChannel

class Ring:
    def __init__(self) -> None: ...
    def close(self) -> None: ...

def give_up(device: int) -> None: ...
def serve(
    ring: Ring,
    device: int,
    queue: int,
    ready: Callable[[], None],
    kick: int,
    channel: UringChannel,
    area: mmap,
    page: int,
    room: int,
    handle: Handler,
) -> None: ...
