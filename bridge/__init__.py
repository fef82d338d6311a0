"""MQTT Agent Bridge: an MQTT broker, an agent per device and a database writer in one process."""

__version__ = "0.1.0"
