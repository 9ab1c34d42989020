"""What every program stands on: processes, devices, files, checkpoints and the log.

Nothing here knows what is being trained. May import: `alignment.types`. Start with
`files.py` (whole files or none), `hosts.py` (several processes as one) and
`sharding.py` (the mesh and its layout rules).
"""
