"""The configuration of a DeciLM checkpoint written by pruneengine; it travels inside it and needs transformers only.

``block_configs`` holds, for each decoder layer, ``attention`` (``n_heads_in_group``: query heads for one key-value
head; ``no_op``) and ``ffn`` (``intermediate_size``; ``no_op``). vLLM reads them as attributes.
"""

from transformers import PretrainedConfig


class Block(dict):
    """A JSON object whose entries can be read as attributes; objects within are blocks too."""

    def __init__(self, values):
        super().__init__({key: Block(value) if isinstance(value, dict) else value for key, value in values.items()})

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __reduce__(self):
        return Block, (dict(self),)


class DeciLMConfig(PretrainedConfig):
    model_type = "nemotron-nas"

    def __init__(self, block_configs=None, **kwargs):
        self.block_configs = [Block(block) for block in block_configs or []]
        super().__init__(**kwargs)
