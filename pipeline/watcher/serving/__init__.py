"""What servers load.

Nothing here is ever changed in place:

    version_store.py   immutable copies by content, with what a model builds itself (build_step.py)
    folder.py          the tree that Triton serves, exchanged whole
    lock.py            one pass at a time
"""
