"""Adapters on disk: every format that is read, and the one that is written.

Names are imported when they are first used, so that whole files can be written without waiting for torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
