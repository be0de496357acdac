"""The store over HTTP: ``loragen-infer serve``; needs the extra ``serve``."""
