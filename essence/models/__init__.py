"""Model folders: what one holds and whether that is a model (host side), loading, chat templates, saving.

Whatever loads a model comes through here. `headers`, `folder`, `decoder`, `tokenizer_files` and `template` need neither
torch nor transformers; `loading` and `saving` do.
"""
