from transfuse.transports.virtqueue import chain, device, driver, packed, split

# The compiled form has the interface of the plain one, and is not mixed with it.
Chain = chain.Chain
DeviceQueue = device.DeviceQueue
DriverQueue = driver.DriverQueue
PackedDevice = packed.PackedDevice
PackedDriver = packed.PackedDriver
SplitDevice = split.SplitDevice
SplitDriver = split.SplitDriver

LIMITS: dict[str, int]
