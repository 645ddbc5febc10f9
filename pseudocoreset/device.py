"""The place of ``DeviceData`` in version 0.1; it is in ``pseudocoreset.data.on_device``."""

from pseudocoreset.data.on_device import DeviceData

__all__ = ["DeviceData"]
