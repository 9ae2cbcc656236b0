from transfuse.transports.virtqueue import memory

# The compiled form has the interface of the plain one, and is not mixed with it.
Mapping = memory.Mapping
Region = memory.Region
GuestMemory = memory.GuestMemory
DirtyLog = memory.DirtyLog
