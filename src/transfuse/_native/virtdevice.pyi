from transfuse.transports.virtqueue import packed, split

# The compiled form has the interface of the plain one, and is not mixed with it.
PackedDevice = packed.PackedDevice
SplitDevice = split.SplitDevice
