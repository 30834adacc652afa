"""Processes, devices and memory of the machine that a run is on."""
