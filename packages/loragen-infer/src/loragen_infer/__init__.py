"""Write a PEFT LoRA adapter from a few unlabelled prompts, and measure that it works.

Names are imported when they are first used: see ``__init__.pyi``.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
