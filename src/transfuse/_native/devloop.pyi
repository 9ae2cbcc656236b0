from mmap import mmap

from transfuse.transports.base import Channel, Handler, Undelivered, Worker

def serve(
    channel: Channel,
    fd: int,
    area: mmap,
    start: int,
    room: int,
    reply_area: mmap,
    page: int,
    handle: Handler,
    undelivered: Undelivered,
    worker: Worker,
    looks: tuple[int, int, int, int, int, int] | None,
) -> None: ...
