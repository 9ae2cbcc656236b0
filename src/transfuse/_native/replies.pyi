from transfuse.fs.values import Attr, Entry

def attr_reply(order: str, unique: int, valid: int, valid_nsec: int, attr: Attr) -> bytes: ...
def entry_reply(
    order: str, unique: int, valid: int, valid_nsec: int, attr_valid: int, attr_nsec: int, entry: Entry
) -> bytes: ...
def create_reply(
    order: str,
    unique: int,
    valid: int,
    valid_nsec: int,
    attr_valid: int,
    attr_nsec: int,
    entry: Entry,
    fh: int,
    open_flags: int,
    backing_id: int,
) -> bytes: ...
def entry_into(
    out: bytearray,
    offset: int,
    order: str,
    valid: int,
    valid_nsec: int,
    attr_valid: int,
    attr_nsec: int,
    entry: Entry,
) -> None: ...
