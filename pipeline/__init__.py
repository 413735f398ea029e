"""From a base checkpoint and a pile of conversations to a served, proven, tracked model."""

import sys

from pipeline.core.moved_modules import MovedModules

__version__ = "0.1.0"

if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
    sys.meta_path.append(MovedModules())
