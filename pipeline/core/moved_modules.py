"""New places of modules of earlier versions: importing an old name reports the new one."""

from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "adapters.absent": "core.import_blocking",
    "adapters.adam_step": "training.nemo.patches.adam_step",
    "adapters.adapter_gradients": "training.nemo.patches.lora_sequence_parallel",
    "adapters.adapter_start": "training.nemo.patches.lora_init",
    "adapters.calibrated_scales": "optimization.scale_checks",
    "adapters.calibration": "optimization.calibration",
    "adapters.checkpoint_reading": "training.nemo.patches.checkpoint_load",
    "adapters.checkpoint_writing": "training.nemo.patches.checkpoint_save",
    "adapters.dequantize": "optimization.dequantize",
    "adapters.exported_weights": "optimization.exported_reader",
    "adapters.fast_training": "training.nemo.patches.performance",
    "adapters.fp8": "optimization.fp8_simulation",
    "adapters.generation": "evaluation.generation",
    "adapters.gpu_kernels": "training.nemo.patches.triton_kernels",
    "adapters.gpu_runtimes": "engines.gpu_requests",
    "adapters.hf": "models.hf_model",
    "adapters.hf_adapters": "engines.hf.lora",
    "adapters.hf_embedder": "engines.hf.embedder",
    "adapters.hf_session": "engines.hf.session",
    "adapters.launch": "training.workers",
    "adapters.logit_probes": "optimization.logit_probes",
    "adapters.logit_proof": "models.logit_proof",
    "adapters.low_rank": "training.nemo.patches.lora_forward",
    "adapters.megatron_cpu": "training.nemo.patches.cpu",
    "adapters.mlflow": "tracking.sender_process",
    "adapters.mlflow_entities": "tracking.mlflow_entities",
    "adapters.mlflow_notes": "tracking.mlflow_notes",
    "adapters.mlflow_registry": "tracking.mlflow_registry",
    "adapters.mlflow_sender": "tracking.mlflow_sender",
    "adapters.mlflow_versions": "tracking.mlflow_versions",
    "adapters.modelopt": "optimization.ptq",
    "adapters.modelopt_export": "optimization.export",
    "adapters.nemo": "training.nemo.models",
    "adapters.nemo_adapters": "training.nemo.lora",
    "adapters.nemo_data": "training.nemo.data",
    "adapters.nemo_recorder": "training.nemo.callbacks",
    "adapters.nemo_session": "training.nemo.session",
    "adapters.nemo_training": "training.nemo.trainer",
    "adapters.nemo_weights": "training.nemo.weight_map",
    "adapters.onnxruntime": "engines.onnxruntime.build",
    "adapters.onnxruntime_session": "engines.onnxruntime.session",
    "adapters.optimizer_state": "training.nemo.patches.optimizer_checkpoint",
    "adapters.packed_rotation": "training.nemo.patches.packed_rope",
    "adapters.patching": "core.monkeypatch",
    "adapters.ranks": "training.torchrun",
    "adapters.remote": "engines.remote.description",
    "adapters.remote_engine": "engines.remote.engine",
    "adapters.remote_requests": "engines.remote.requests",
    "adapters.settled_parameters": "training.nemo.patches.ddp_stream_sync",
    "adapters.slurm": "deployment.launchers.slurm",
    "adapters.split_weights": "training.nemo.patches.master_weights",
    "adapters.trtllm": "engines.trtllm.build",
    "adapters.trtllm_engine": "engines.trtllm.engine",
    "adapters.vllm": "engines.vllm.arguments",
    "adapters.vllm_engine": "engines.vllm.engine",
    "adapters.weight_sums": "training.nemo.patches.gradient_accumulation",
    "artifact": "core.artifact",
    "batches": "training.batches",
    "chat": "models.chat.renderer",
    "chat_template": "models.chat.template",
    "checkpoint_checks": "models.checks",
    "checkpoint_files": "models.files",
    "compose": "orchestration.compose",
    "console": "core.console",
    "curve": "training.progress",
    "data_formats": "data.reading",
    "dataset": "data.dataset",
    "duplicates": "data.deduplication",
    "errors": "core.errors",
    "evaluation_report": "evaluation.report",
    "finetune_checks": "training.settings_checks",
    "gpu_use": "core.gpu_use",
    "graph": "orchestration.graph",
    "graph_run": "orchestration.graph_run",
    "hardware": "core.hardware",
    "help": "orchestration.help",
    "launcher_config": "config.launcher",
    "launchers.kubernetes": "deployment.launchers.kubernetes",
    "measured": "engines.benchmark_history",
    "messages": "models.chat.messages",
    "mlflow_config": "config.tracking",
    "model_shape": "models.architecture",
    "paths": "core.paths",
    "preflight": "planner.preflight",
    "profile": "engines.profile",
    "profile_reasons": "engines.compatibility",
    "profiles": "engines.selection",
    "qnemo": "optimization.qnemo_layout",
    "recordings": "data.snapshots",
    "registered": "engines.registered",
    "rendering": "models.chat.template_consistency",
    "room": "core.resource_errors",
    "runner": "orchestration.runner",
    "samples": "data.samples",
    "scoring": "evaluation.metrics",
    "section": "config.section",
    "serving.answer": "engines.batching.request",
    "serving.batching": "engines.batching.scheduler",
    "serving.bounds": "serving.middleware.request_limits",
    "serving.calls": "serving.middleware.request_log",
    "serving.checkpoint": "engines.checkpoint",
    "serving.conversation": "serving.openai.conversation",
    "serving.description": "engines.description",
    "serving.door": "serving.middleware.auth",
    "serving.embedding": "serving.openai.embeddings",
    "serving.engine": "engines.base",
    "serving.engine_process": "engines.process.worker",
    "serving.forms": "serving.openai.choices",
    "serving.frames": "engines.process.framing",
    "serving.generation": "serving.openai.generation",
    "serving.guidance": "engines.batching.guided_decoding",
    "serving.launch": "serving.container.launch",
    "serving.link": "engines.process.client",
    "serving.load": "serving.benchmark.load_generator",
    "serving.logprobs": "serving.openai.logprobs",
    "serving.memory": "engines.memory",
    "serving.models": "serving.openai.models",
    "serving.nim": "serving.container.nim_variables",
    "serving.open": "engines.opening",
    "serving.operations": "serving.middleware.stack",
    "serving.process": "serving.server_process",
    "serving.prompt_types": "serving.openai.prompt_types",
    "serving.prompts": "serving.openai.prompts",
    "serving.protocol": "serving.openai.protocol",
    "serving.rates": "serving.middleware.rate_limits",
    "serving.recording": "serving.middleware.recording",
    "serving.runtimes": "engines.registry",
    "serving.sampling": "engines.batching.sampling",
    "serving.service": "serving.openai.completions",
    "serving.settings": "serving.openai.sampling_params",
    "serving.step_model": "engines.batching.model_runner",
    "serving.stream": "engines.token_stream",
    "serving.supervised": "engines.process.supervisor",
    "serving.text": "serving.openai.detokenizer",
    "serving.tools": "serving.parsers.detection",
    "serving.tracing": "serving.middleware.tracing",
    "serving.transcripts": "serving.middleware.transcripts",
    "serving.wire": "serving.middleware.http_limits",
    "sorter": "data.row_filter",
    "spool": "tracking.outbox",
    "stage": "core.stage",
    "stage_versions": "orchestration.stage_versions",
    "summary": "orchestration.summary",
    "summary_view": "orchestration.summary_view",
    "tokenizer_folder": "models.chat.tokenizer",
    "unified_hf": "optimization.unified_hf_layout",
    "weight_formats": "optimization.formats",
}


# Removed packages: empty ones replace them, so that Python looks for the module inside.
GONE = ("adapters", "launchers")


class _Empty(Loader):
    def exec_module(self, module: ModuleType) -> None:
        """The package is empty."""


class MovedModules(MetaPathFinder):
    """The last finder: Python asks it only for modules that no other finder found."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """None for modules that the pipeline never had.

        Raises:
            ModuleNotFoundError: an earlier version had the module; names where it is now.
        """
        package, _, name = fullname.partition(".")
        if package != "pipeline":
            return None
        if name in GONE:
            return ModuleSpec(fullname, _Empty(), is_package=True)
        if name in MOVED:
            # Without a name, which `from package import module` would take for "no such attribute".
            raise ModuleNotFoundError(
                f"{fullname} is pipeline.{MOVED[name]} now: change the import"
            )
        return None
