"""Configurations: each file opens with its command, hardware, duration and result."""
