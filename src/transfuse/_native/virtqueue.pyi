from transfuse.transports.virtqueue import chain, device, packed, split

# The compiled form has the interface of the plain one, and is not mixed with it.
Chain = chain.Chain
DeviceQueue = device.DeviceQueue
PackedDevice = packed.PackedDevice
SplitDevice = split.SplitDevice

LIMITS: dict[str, int]
