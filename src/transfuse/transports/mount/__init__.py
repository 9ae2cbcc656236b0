"""The mount side of the /dev/fuse transport: options, the mount itself, its end. Nothing here reads a FUSE message.

In short: options = parse_options(["ro,allow_other"]); mounted = open_and_attach("/mnt/demo", options); somebody serves
mounted.device_fd; mounted.umount().
"""

from .attach import Method, attach, choose_method, open_and_attach, open_device
from .errors import MountError, MountOptionError
from .fusermount import find_fusermount, user_allow_other
from .inherit import from_fd, parse_dev_fd
from .mounted import Mounted, abort_connection
from .options import MountOptions, Remount, check_remount, parse_options, unknown_option
from .umount import umount

__all__ = [
    "Method",
    "MountError",
    "MountOptionError",
    "MountOptions",
    "Mounted",
    "Remount",
    "abort_connection",
    "attach",
    "check_remount",
    "choose_method",
    "find_fusermount",
    "from_fd",
    "open_and_attach",
    "open_device",
    "parse_dev_fd",
    "parse_options",
    "umount",
    "unknown_option",
    "user_allow_other",
]
