"""Where committed telemetry, events, presence and command steps are passed on to: each sink on its own."""
