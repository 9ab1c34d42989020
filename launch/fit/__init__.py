"""What fits where: slices, the smallest one that should do, and what was compiled.

`python -m launch.compile_check` is the command. Start with `propose.py`.
"""
