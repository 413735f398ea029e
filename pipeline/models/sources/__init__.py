"""Where a model comes from: a folder, or a place that it is fetched from into a cache.

    from pipeline.models.sources.fetching import fetch, local_folder, provenance
    local_folder("hf://org/name@main", artifacts)   # its folder in the cache, with config.json
    fetch(folder, artifacts)                        # the rest of its files, where some are missing
    provenance(folder, artifacts)                   # what a manifest says of it

The first call that meets a source resolves its revision and records it in artifacts/.sources.json;
later ones keep to the record. So a chain of stages has one model, whatever is published meanwhile.
Only what a model needs is fetched: see files.py.
"""
