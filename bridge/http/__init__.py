"""The bridge's HTTP side: health, metrics and the operator's API."""
