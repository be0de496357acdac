"""What makes a text encoder the same one: its weights, and how it cuts text into tokens and pools their states.

Taken from what is loaded and not from the files, so that a copy, a package and the hub's snapshot of one encoder agree,
and trained weights count; and from values only, never from how a version of a library names or prints them.
"""

import hashlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["content_fingerprint"]

# What changes an embedding and shows neither in a weight nor in a token.
_NETWORK = ("model_type", "hidden_act", "num_attention_heads", "num_hidden_layers", "position_embedding_type")
# Cases, accents, white space, digits, scripts and what is in no vocabulary: where tokenizers differ.
_PROBE = "The quick BROWN fox: naïve Ünïcode\t12,345.60 = x_1  + y² (don't!)\n数学 각 עברית 🙂 http://a.b/c?d=e"


def content_fingerprint(model: "SentenceTransformer", prefix: str) -> str:
    """Return 32 hexadecimal digits over all that an embedding of ``model``, asked with ``prefix``, hangs on."""
    import torch

    config = next((module.config for module in model.modules() if hasattr(module, "config")), None)
    facts = {
        "modules": [type(module).__name__ for module in model.children()],
        "pooling": [getattr(module, "pooling_mode", None) for module in model.children()],
        "network": {key: getattr(config, key, None) for key in _NETWORK},
        "max_seq_length": model.max_seq_length,
        "prefix": prefix,
        "vocabulary": sorted(model.tokenizer.get_vocab().items()),
        "probe": model.preprocess([_PROBE])["input_ids"].tolist(),
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for value in model.state_dict().values():
        if value.is_floating_point():  # the others are positions and the like, which not every version keeps
            digest.update(str(tuple(value.shape)).encode())
            digest.update(value.detach().float().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:32]
