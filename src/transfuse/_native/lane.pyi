from transfuse.transports.virtqueue import lane

# The compiled form has the interface of the plain one, and is not mixed with it.
Lane = lane.Lane
