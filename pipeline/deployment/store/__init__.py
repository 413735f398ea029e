"""Where the bytes of registered versions are kept: a folder, an object store, a container registry,
or MLflow's artifact store.

    from pipeline.deployment.store import places, transfer
    store = places.open_store("s3://models/bank", config)
    bundle = transfer.push(artifacts, store)              # sha256 of the list of what was pushed
    transfer.pull(store, bundle, "build", folder)         # an artifact, verified

Every file is a blob, named by its sha256, so a file that two versions share is stored once. The
list of a version's artifacts is a blob, too: its digest names the version's bytes.
"""
