"""Meanings of the settings, until the schema's fields carry them as descriptions.

A meaning here comes before the description of the field. Move it there, and delete it here.
"""

from collections.abc import Mapping

MEANINGS: Mapping[str, str] = {
    "seed": "Seed of every random choice: splits, order of rows, adapter weights, resampling.",
    "artifacts": "Folder in which the stages write their artifacts.",
    "model.name": "Name of the model for clients, for MLflow and in reports.",
    "model.path": "Hugging Face folder of the base model. Nothing is downloaded.",
    "model.dtype": "Precision in which merge writes the tuned weights.",
    "data.folder": "Folder that the names below are relative to.",
    "data.train": "Training files: names or globs below the folder.",
    "data.test": "Test files: names or globs below the folder. They are never trained on.",
    "data.sources": "Text files with a section for each question, used for training too.",
    "data.recorded": (
        "Folder below `data.folder` for the snapshots of `stage=retrain`. It may be absent."
    ),
    "prepare.max_length": "Longest conversation, in tokens. A longer one is rejected, never cut.",
    "prepare.validation_share": "Share of the training rows that is used for validation.",
    "prepare.near_duplicate_threshold": "Similarity at which a row counts as a near duplicate.",
    "prepare.leak_threshold": "Similarity at which a training row leaks a test question.",
    "prepare.max_reject_share": "Share of rejected rows above which the stage fails.",
    "prepare.samples": "Number of rendered conversations to print.",
    "pretrain.generator": "Python file that generates the training text.",
    "pretrain.vocabulary": "Number of tokens in the tokenizer.",
    "pretrain.hidden_size": "Width of the model.",
    "pretrain.layers": "Number of layers.",
    "pretrain.heads": "Number of query heads.",
    "pretrain.key_value_heads": "Number of key-value heads.",
    "pretrain.ffn_size": "Width of the feed-forward layers.",
    "pretrain.max_positions": "Longest sequence that the model accepts, in tokens.",
    "pretrain.steps": "Optimizer steps.",
    "pretrain.batch_size": "Rows in an optimizer step.",
    "pretrain.micro_batch_size": "Rows in a forward pass.",
    "pretrain.sequence_length": "Tokens in a row.",
    "pretrain.learning_rate": "Highest learning rate.",
    "pretrain.warmup_steps": "Steps in which the learning rate rises from 0.",
    "pretrain.weight_decay": "AdamW's weight decay.",
    "pretrain.conversation_share": "Share of the text that is conversations.",
    "pretrain.corpus_tokens": "Tokens of text to generate. Longer training repeats them.",
    "pretrain.checkpoint_every": "Steps between two checkpoints.",
    "finetune.method": "What is trained: adapters (`lora`, `dora`) or every weight (`sft`).",
    "finetune.adapter.rank": "Rank of the adapters.",
    "finetune.adapter.alpha": "Scale of the adapters: their product is multiplied by alpha / rank.",
    "finetune.adapter.dropout": "Dropout on the adapters' input.",
    "finetune.parallel.processes": "Training processes on all machines: one per GPU.",
    "finetune.parallel.tensor": "GPUs that share the matrices of each layer.",
    "finetune.parallel.pipeline": "GPUs that share the layers, a consecutive part each.",
    "finetune.parallel.context": "GPUs that share the tokens of each row.",
    "finetune.max_steps": "Optimizer steps.",
    "finetune.global_batch_size": "Rows, or packs, in an optimizer step on all GPUs.",
    "finetune.micro_batch_size": "Rows in a forward pass on one GPU. Lower it to save memory.",
    "finetune.pack_length": (
        "Tokens in a pack of several rows, which do not see one another. `null` pads rows instead."
    ),
    "finetune.precision": "Precision of matrix products on a GPU. A CPU computes in float32.",
    "finetune.learning_rate": "Highest learning rate.",
    "finetune.min_learning_rate": "Learning rate at the end of the cosine decay.",
    "finetune.warmup_steps": "Steps in which the learning rate rises from 0.",
    "finetune.weight_decay": "AdamW's weight decay.",
    "finetune.clip_grad": "Largest norm of the gradient. 0 switches clipping off.",
    "finetune.validate_every": "Steps between two validations.",
    "finetune.checkpoint_every": "Steps between two checkpoints.",
    "quantize.format": "Format that is evaluated, exported and served.",
    "quantize.compare": "Further formats to evaluate beside it. They are not exported.",
    "quantize.kv_cache": "Precision of the key-value cache.",
    "quantize.exclude": "Parts of module names to leave unquantized. Must include `lm_head`.",
    "quantize.calibration.rows": "Training rows to calibrate with.",
    "quantize.calibration.batch_size": "Rows in a forward pass of the calibration.",
    "quantize.calibration.max_length": "Longest calibration row, in tokens.",
    "evaluate.max_new_tokens": "Longest answer, in tokens.",
    "evaluate.batch_size": "Questions answered together.",
    "evaluate.bootstrap_samples": "Resamples for the confidence intervals.",
    "evaluate.gate.min_exact_match.adapter": (
        "Lowest exact match of a model tuned with LoRA or DoRA that passes the gate."
    ),
    "evaluate.gate.min_exact_match.full": (
        "Lowest exact match of a fully fine-tuned model that passes the gate."
    ),
    "evaluate.gate.max_drop": (
        "Exact match that each format may lose against the tuned model and still pass the gate."
    ),
    "export.tensor_parallel": "GPUs that share the matrices of each layer in the qnemo checkpoint.",
    "export.pipeline_parallel": "GPUs that share the layers in the qnemo checkpoint.",
    "engine.name": "Runtime to build for and to serve with.",
    "engine.profile": "A profile by the name that `stage=profiles` prints. `null` takes the best.",
    "engine.precision": (
        "Precision of the `onnxruntime` engine. `auto` keeps int8 if it answers as fp32 does."
    ),
    "engine.max_batch_size": "Answers generated at the same time.",
    "engine.max_input_len": "Longest prompt, in tokens.",
    "engine.max_seq_len": "Longest prompt and answer together, in tokens.",
    "engine.lora_rank": "Highest rank of LoRA adapters added while serving. 0 allows none.",
    "engine.arguments": "Further arguments of vLLM or TensorRT-LLM, by their own names.",
    "serve.host": "Address to listen on. `0.0.0.0` listens on all of them.",
    "serve.port": "Port to listen on. 0 takes a free one.",
    "serve.version": (
        "Version number or alias in the registry, such as `champion`. `null` serves the last build."
    ),
    "serve.max_queue": "Requests that may wait for a slot. Further ones get status 429.",
    "serve.keys_file": "JSON lines file with API keys, written by `pipeline.serving.keys`.",
    "serve.max_connections": "Open connections. Further ones get status 503.",
    "serve.max_header_bytes": "Largest request header, in bytes.",
    "serve.max_body_bytes": "Largest request body, in bytes.",
    "serve.header_timeout": "Seconds to receive a request's headers.",
    "serve.body_timeout": "Seconds to receive a request's body.",
    "serve.request_timeout": "Seconds to finish an answer.",
    "serve.stalled_timeout": "Seconds after which a client that reads nothing is disconnected.",
    "serve.keep_alive_timeout": (
        "Seconds after which an idle connection is closed. Longer than the proxy's own timeout."
    ),
    "serve.drain_delay": (
        "Seconds after a stop signal in which new requests are still accepted, so that a load "
        "balancer can notice."
    ),
    "serve.log_content": "Whether the log holds prompts and answers.",
    "serve.record": "Folder for conversations whose request consents to be recorded.",
    "serve.adapters": "Folder of LoRA adapters. Each is served under the name of its own folder.",
    "benchmark.concurrency": "Numbers of requests at a time to measure.",
    "benchmark.requests": "Requests at each number.",
    "benchmark.max_tokens": (
        "Longest answer, in tokens. Keep it at `evaluate.max_new_tokens` to get the same answers."
    ),
    "register.name": "Name in the MLflow registry.",
    "retrain.recordings": "Folder with recorded conversations.",
    "retrain.min_new": "New conversations needed to run the graph.",
    "retrain.every": "Seconds between two checks. `null` checks once.",
    "retrain.schedule": 'Cron schedule for `launcher=kubernetes`, such as `"0 3 * * *"`.',
    "profiles.format": "Print a table or JSON.",
    "plan.gpu": "GPU to plan for. `null` plans for this machine.",
    "plan.gpus_per_node": "GPUs in each machine of the plan.",
    "plan.format": "Print a table or JSON.",
    "launcher.nodes": "Machines that share the training.",
    "launcher.dry_run": "Show what would run or be submitted, and do nothing.",
    "launcher.name": "Where the command runs.",
    "launcher.account": "Slurm account.",
    "launcher.partition": "Slurm partition.",
    "launcher.time": "Time limit of the job, in sbatch's form.",
    "launcher.container_image": "Image of the Dockerfile's `train` target.",
    "launcher.container_mounts": "Folders to mount, as `/host:/container`.",
    "launcher.job_folder": "Folder for scripts and logs. All nodes must share it.",
    "launcher.namespace": "Kubernetes namespace.",
    "launcher.claim": "Persistent volume claim (ReadWriteMany) with the model and the artifacts.",
    "launcher.mount": "Where the claim is mounted in the container.",
    "launcher.shared_memory": "Size of `/dev/shm`, for NCCL and the data loader.",
    "tracking.enabled": "Whether runs are tracked in MLflow.",
    "tracking.uri": (
        "MLflow server. `null` uses a SQLite store beside the artifacts. MLFLOW_TRACKING_URI comes "
        "first."
    ),
    "tracking.experiment": "MLflow experiment.",
    "tracking.upload_weights": (
        "Whether weights are uploaded. Otherwise MLflow keeps their place and digest."
    ),
}
