"""The computations of a layer for which a device has a kernel of its own, one module per kind of device."""
