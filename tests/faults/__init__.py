"""Tests that try to break the promises: real processes, real servers, real faults."""
