"""A page in the browser that makes adapters from prompts and shows what they do."""
