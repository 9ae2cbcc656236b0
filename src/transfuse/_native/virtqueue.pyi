from transfuse.transports.virtqueue import chain, device

# The compiled form has the interface of the plain one, and is not mixed with it.
Chain = chain.Chain
DeviceQueue = device.DeviceQueue

LIMITS: dict[str, int]
