"""Models as pure functions over one parameter pytree, and their Hugging Face files.

Start with `protocol.py`: all that the other rooms may ask of a model. `registry.py` has
the names of sizes and families; nothing outside this room names one. `t5.py` is an
encoder-decoder, `decoder.py` (with `decoder_config.py` and `decoder_layer.py`) every
decoder-only family, `lora.py` a model of any family of which only adapters are trained;
`layers.py`, `rope.py` and `stacks.py` are what they are made of,
`huggingface/` reads and writes checkpoints.

May import: `alignment.runtime`, `alignment.types`.
"""
