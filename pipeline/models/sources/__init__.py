"""Where a model comes from: a folder, or a place that it is fetched from into a cache.

    local_folder("hf://org/name@main", artifacts)   # its folder in the cache, with config.json
    fetch(folder, artifacts)                        # the rest of its files, where some are missing
    provenance(folder, artifacts)                   # what a manifest says of it

The first call that meets a source resolves its revision and records it in artifacts/.sources.json;
later ones keep to the record. So a chain of stages has one model, whatever is published meanwhile.
Only what a model needs is fetched: see `wanted`.
"""

from pipeline.models.sources.address import is_source
from pipeline.models.sources.fetching import fetch, is_whole, local_folder, provenance

__all__ = ["fetch", "is_source", "is_whole", "local_folder", "provenance"]
