"""Devices that behave like real ones, and the replay of recorded data: MQTT clients of any broker."""
