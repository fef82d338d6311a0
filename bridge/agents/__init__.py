"""One agent per device: a coroutine that owns the device's state."""
