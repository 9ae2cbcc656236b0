from transfuse.transports.virtqueue import driver, packed, split

# The compiled form has the interface of the plain one, and is not mixed with it.
DriverQueue = driver.DriverQueue
PackedDriver = packed.PackedDriver
SplitDriver = split.SplitDriver
