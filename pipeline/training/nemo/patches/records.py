"""Every replacement of library code around training: what, for which version, and why.

The code is in the modules beside this one. Imports nothing heavy, so that versions are compared
before NeMo is imported. docs/patches.md is written from these records (`make patches`).
"""

from pipeline.core.monkeypatch import Patch

_CPU = "Megatron-Core calls CUDA without asking whether there is a GPU"

# ---- A machine without a GPU (cpu.py) ----

CUDA_DEVICE = Patch(
    owner="torch.cuda",
    names=("current_device", "set_device"),
    distribution="torch",
    version="2.13.0",
    reason="Buffers are allocated on, and batches moved to, the current device.",
    digest="8eb597f611f80168",
    where="CPU",
    required=_CPU,
)
CUDA_STREAMS = Patch(
    owner="torch.cuda",
    names=("synchronize", "Stream", "Event", "stream", "current_stream", "default_stream"),
    distribution="torch",
    version="2.13.0",
    reason="CPU operators have finished when they return: there is nothing to wait for.",
    digest="1e60ada0772a35ea",
    where="CPU",
    required=_CPU,
)
CUDA_RANDOM = Patch(
    owner="torch.cuda",
    names=("manual_seed", "get_rng_state", "set_rng_state"),
    distribution="torch",
    version="2.13.0",
    reason="There is no generator of a device; torch.manual_seed has seeded the only one.",
    digest="38fb6ed2ed61b2ae",
    source=tuple(
        f"torch.cuda.random:{name}" for name in ("manual_seed", "get_rng_state", "set_rng_state")
    ),
    where="CPU",
    required=_CPU,
)
CUDA_PROFILER = Patch(
    owner="torch.cuda.nvtx",
    names=("range_push", "range_pop"),
    distribution="torch",
    version="2.13.0",
    reason="The profiler's range marks are missing from CPU builds and raise.",
    digest="7db1c0a0c37207e2",
    where="CPU",
    required=_CPU,
)
ZERO_CENTERED_NORM = Patch(
    owner="megatron.core.transformer.torch_norm:WrappedTorchNorm",
    names=("__new__",),
    distribution="megatron-core",
    version="0.15.3",
    reason="Norms that multiply by (weight + 1), as Gemma's, are only in Transformer Engine.",
    digest="5aa5242895711112",
    where="CPU",
    required="without it no model of such a family is built",
)
CUDA_TENSOR_TYPES = Patch(
    owner="torch.cuda",
    names=("FloatTensor", "HalfTensor", "BFloat16Tensor", "IntTensor", "LongTensor"),
    distribution="megatron-core",
    version="0.15.3",
    reason="Megatron-Core and NeMo use the legacy types in isinstance checks and as constructors.",
    digest="561824bbc1fd62e2",
    source=tuple(
        f"megatron.core.transformer.module:_{name}_TYPES" for name in ("FLOAT", "HALF", "BF16")
    ),
    where="CPU",
    required=_CPU,
)
# Functions that make tensors on a device given by name.
FACTORIES = (
    *("arange", "as_tensor", "empty", "empty_like", "empty_strided", "eye", "full", "full_like"),
    *("linspace", "ones", "ones_like", "rand", "rand_like", "randint", "randn", "randn_like"),
    *("randperm", "tensor", "tril_indices", "zeros", "zeros_like"),
)
TENSOR_FACTORIES = Patch(
    owner="torch",
    names=FACTORIES,
    distribution="torch",
    version="2.13.0",
    reason='Tensors are made on the device "cuda", by name.',
    digest="e615b33fb3c5f256",
    source=tuple(f"torch._C._VariableFunctions:{name}" for name in FACTORIES),
    where="CPU",
    required=_CPU,
)
TENSOR_MOVES = Patch(
    owner="torch:Tensor",
    names=("to", "cuda", "pin_memory"),
    distribution="torch",
    version="2.13.0",
    reason='Tensors are moved to the device "cuda", or to memory that a GPU can read.',
    digest="13db076f15aa4a85",
    source=tuple(f"torch._C:TensorBase.{name}" for name in ("to", "cuda", "pin_memory")),
    where="CPU",
    required=_CPU,
)
RNG_TRACKER = Patch(
    owner="megatron.core.tensor_parallel.random:CudaRNGStatesTracker",
    names=("fork",),
    distribution="megatron-core",
    version="0.15.3",
    reason=(
        "The tracker's states are filled on a GPU only. On a CPU the default generator serves: "
        "with use_cpu_initialization every rank draws the whole matrix and keeps its own part."
    ),
    digest="59e7e6023d0bec81",
    where="CPU",
    required=_CPU,
)
RNG_STATE = Patch(
    owner="megatron.core.tensor_parallel.random",
    names=("_get_cuda_rng_state", "_set_cuda_rng_state"),
    distribution="megatron-core",
    version="0.15.3",
    reason="Both reach below torch.cuda's public functions.",
    digest="e3ed9c855923a648",
    where="CPU",
    required=_CPU,
)
CLIPPING = Patch(
    owner="megatron.core.optimizer.optimizer",
    names=("clip_grad_by_total_norm_fp32",),
    distribution="megatron-core",
    version="0.15.3",
    reason='It asserts the type name "torch.cuda.FloatTensor".',
    digest="9bad70db820870dc",
    reads=("megatron.core.optimizer.clip_grads:clip_grad_by_total_norm_fp32",),
    where="CPU",
    required=_CPU,
)
LOADED_TENSORS = Patch(
    owner="nemo.lightning.io.pl",
    names=("_fix_tensors_device",),
    distribution="nemo_toolkit",
    version="2.7.3",
    reason="It asserts that CUDA is initialised, then moves tensors between GPUs: there are none.",
    digest="8f16549089ad6972",
    where="CPU",
    required=_CPU,
)
LORA_LAYER_TYPES = Patch(
    owner="nemo.collections.llm.peft.lora",
    names=("te",),
    distribution="nemo_toolkit",
    version="2.7.3",
    reason="It compares classes with te.Linear, where te is a placeholder without attributes.",
    digest="7b01710e29b590c9",
    reads=("nemo.collections.llm.peft.lora:LoRA.transform",),
    where="CPU",
    required="NeMo takes Transformer Engine for granted, which needs a GPU",
)
LORA_TRANSFORMER_ENGINE = Patch(
    owner="nemo.collections.llm.peft.utils",
    names=("HAVE_TE",),
    distribution="nemo_toolkit",
    version="2.7.3",
    reason=(
        "An import that succeeds without Transformer Engine sets it; the layers are then asked for "
        "attributes that only Transformer Engine's have."
    ),
    digest="1d173b39927eb543",
    reads=("nemo.collections.llm.peft.utils:get_adapter_attributes_from_linear",),
    where="CPU",
    required="NeMo takes Transformer Engine for granted, which needs a GPU",
)
ROUTER_PRODUCT = Patch(
    owner="megatron.core.transformer.moe.moe_utils",
    names=("te_general_gemm",),
    distribution="megatron-core",
    version="0.15.3",
    reason=(
        "The router asks whether Transformer Engine's product is None, and without Transformer "
        "Engine the name does not exist."
    ),
    digest="709f21db1aeeee93",
    source=("megatron.core.transformer.moe.moe_utils:RouterGatingLinearFunction",),
    where="CPU",
    required="NeMo takes Transformer Engine for granted, which needs a GPU",
)

# ---- The session (session.py) ----

TORCHMETRICS = Patch(
    owner="torchmetrics",
    names=("Metric", "MetricCollection"),
    distribution="torchmetrics",
    version="1.9.0",
    reason="Lightning asks only what is an instance of them; importing them loads 600 modules.",
    digest="86e6871d48f300d5",
)
COMPILED_EXTENSIONS = Patch(
    owner="torch.utils.cpp_extension",
    names=("load_inline",),
    distribution="megatron-core",
    version="0.15.3",
    reason=(
        "Megatron-Core compiles an allocator for inference when it is imported, ten seconds on a "
        "GPU, and does without it where the compiler fails."
    ),
    digest="4554098f5d47e628",
    source=("megatron.core.inference.unified_memory:_mod",),
)
MODELOPT_STATE = Patch(
    owner="nemo.collections.llm.modelopt.model_utils",
    names=("restore_modelopt_state", "save_modelopt_state"),
    distribution="nemo_toolkit",
    version="2.7.3",
    reason=(
        "NeMo imports ModelOpt to ask whether it changed the model. Nothing has; the import takes "
        "seconds, and exceptions that it stores keep the model in memory."
    ),
    digest="86cf9a2395ac74c1",
    required="it unpickles a folder modelopt_state, which a checkpoint may bring",
)
MODELOPT_SHAPES = Patch(
    owner="nemo.collections.llm.modelopt.distill.utils",
    names=("get_tensor_shapes_adjust_fn_for_distillation",),
    distribution="nemo_toolkit",
    version="2.7.3",
    reason="NeMo imports ModelOpt for distillation, which is not used here.",
    digest="9383d14cf339805e",
)
EXTRA_STATES = Patch(
    owner="nemo.lightning.megatron_parallel:MegatronParallel",
    names=("_module_sharded_state_dict",),
    distribution="nemo_toolkit",
    version="2.7.3",
    reason=(
        "Only Transformer Engine's layers have _extra_state (of FP8 training). A checkpoint "
        "without it opens with them and with Megatron's own layers."
    ),
    digest="455172d0eae0299f",
    required="checkpoints that stage=import wrote do not have this state",
)
NUMPY_PRODUCT = Patch(
    owner="numpy",
    names=("product",),
    distribution="megatron-core",
    version="0.15.3",
    reason="Ranks that share the writing of a checkpoint call it by the name that NumPy 2 dropped.",
    digest="fce8f3b821e244bf",
    source=(
        "megatron.core.dist_checkpointing.exchange_utils:_shard_size",
        "megatron.core.dist_checkpointing.validation:_validate_sharding_for_key_flattened",
    ),
    required="saving a checkpoint from several ranks fails with NumPy 2",
)
WRITE_RESULTS = Patch(
    owner="megatron.core.dist_checkpointing.strategies.filesystem_async",
    names=("_results_queue",),
    distribution="megatron-core",
    version="0.15.3",
    reason="Megatron-Core makes this queue in a process of its own, which takes seconds to start.",
    digest="337d3bf4764e3855",
    reads=(
        "megatron.core.dist_checkpointing.strategies.filesystem_async:_get_write_results_queue",
    ),
)
CHECKPOINT_WRITER = Patch(
    owner="megatron.core.dist_checkpointing.strategies.filesystem_async:FileSystemWriterAsync",
    names=("prepare_write_data", "preload_tensors", "write_preloaded_data_multiproc"),
    distribution="megatron-core",
    version="0.15.3",
    reason=(
        "It copies the whole model, to pinned memory or where a tensor is a part of another, "
        "before two processes write it. Here threads copy and write tensor by tensor."
    ),
    digest="2347204bfaa6526b",
)
CHECKPOINT_READER = Patch(
    owner="torch.distributed.checkpoint:FileSystemReader",
    names=("read_data",),
    distribution="torch",
    version="2.13.0",
    reason="It reads one tensor after another, and the disk waits while each is copied.",
    digest="27bb851870c2fc0d",
    source=("torch.distributed.checkpoint.filesystem:FileSystemReader.read_data",),
)

JOINED_HALVES = Patch(
    owner="megatron.core.transformer.mlp",
    names=("apply_swiglu_sharded_factory",),
    distribution="megatron-core",
    version="0.15.3",
    reason=(
        "After a checkpoint is read it copies both halves of each gated feed-forward part into a "
        "new tensor. Halves that lie together are taken as they lie."
    ),
    digest="1a251c39b66c7cbc",
    reads=("megatron.core.dist_checkpointing.mapping:ShardedTensorFactory",),
)

# ---- Experts (dora_experts.py) ----

DORA_EXPERTS = Patch(
    owner="nemo.collections.llm.peft.dora:DoRALinear",
    names=("forward",),
    distribution="nemo_toolkit",
    version="2.7.3",
    reason=(
        "It scales an output as [sequence, batch, columns]. Experts see [tokens, columns], and got "
        "a dimension more back than they gave."
    ),
    digest="7b0217b5c4f9fee2",
    required="DoRA on a model with experts fails",
)

# ---- Checkpoints: nothing in them is run (checkpoint_safety.py) ----

_NO_CODE = "a checkpoint must not run code on the machine that reads it"

INDEX_READER = Patch(
    owner="torch.distributed.checkpoint:FileSystemReader",
    names=("read_metadata",),
    distribution="torch",
    version="2.13.0",
    reason="It unpickles the index, and a pickle can call any function.",
    digest="f4f6804117351082",
    source=("torch.distributed.checkpoint.filesystem:FileSystemReader.read_metadata",),
    required=_NO_CODE,
)
INDEX_WRITER = Patch(
    owner="megatron.core.dist_checkpointing.strategies.filesystem_async:FileSystemWriterAsync",
    names=("finish",),
    distribution="megatron-core",
    version="0.15.3",
    reason=(
        "It writes a random id, the folder's path and the plans of all ranks into the index: two "
        "runs that made the same weights would differ."
    ),
    digest="6639ea7910bb39d4",
    reads=("torch.distributed.checkpoint.filesystem:_FileSystemWriter.finish",),
    required="an index in another form is refused when it is read",
)
OBJECT_READER = Patch(
    owner="torch.distributed.checkpoint:DefaultLoadPlanner",
    names=("load_bytes",),
    distribution="torch",
    version="2.13.0",
    reason="It unpickles objects beside the tensors; no checkpoint here has any.",
    digest="c474948d225d7bc2",
    source=("torch.distributed.checkpoint.default_planner:DefaultLoadPlanner.load_bytes",),
    required=_NO_CODE,
)
COMMON_READER = Patch(
    owner="megatron.core.dist_checkpointing.strategies.common:TorchCommonLoadStrategy",
    names=("load_common", "load_sharded_objects"),
    distribution="megatron-core",
    version="0.15.3",
    reason=(
        "An environment variable makes torch.load unpickle anything here, and Megatron-Core adds "
        "classes to those that it makes."
    ),
    digest="80caac59ea9cb168",
    required=_NO_CODE,
)
CONTEXT_NAMES = Patch(
    owner="nemo.lightning.io.mixin",
    names=("uuid",),
    distribution="nemo_toolkit",
    version="2.7.3",
    reason="What it cannot describe it pickles into files of random names.",
    digest="fbad6d6bbfb9912c",
    source=("nemo.lightning.io.mixin:_io_flatten_object",),
    required="artifacts of the same content have the same digest",
)

# ---- Training: wrong results (ddp_stream_sync.py, lora_*.py, performance.py) ----

DDP_WRAPPING = Patch(
    owner="nemo.lightning.megatron_parallel:MegatronParallel",
    names=("init_ddp",),
    distribution="nemo_toolkit",
    version="2.7.3",
    reason=(
        "Parameters are moved on a side stream that nothing waits for: the main stream may write "
        "over one that is not copied yet."
    ),
    digest="09de4e3851612f82",
    where="GPU",
    link="https://github.com/NVIDIA/Megatron-LM/pull/2652",
)
LORA_INIT = Patch(
    owner="nemo.collections.llm.peft.utils:ParallelLinearAdapter",
    names=("__init__",),
    distribution="nemo_toolkit",
    version="2.7.3",
    reason=(
        "An adapter's first values depend on the device and the layout. Here they depend on the "
        "seed and the layer's name."
    ),
    digest="d8c0ed9c628e6f2b",
)
_GATHERED = ("nemo.collections.llm.peft.utils:get_adapter_attributes_from_linear",)
LORA_GATHERING = Patch(
    owner="nemo.collections.llm.peft.lora",
    names=("get_adapter_attributes_from_linear",),
    distribution="nemo_toolkit",
    version="2.7.3",
    reason=(
        "With sequence parallelism Transformer Engine 2.9 drops the gradient that comes back for "
        "the gathered tokens which NeMo asks of it."
    ),
    digest="4e80a445dd45e061",
    reads=_GATHERED,
    link="https://github.com/NVIDIA/TransformerEngine/pull/697",
)
DORA_GATHERING = Patch(
    owner="nemo.collections.llm.peft.dora",
    names=("get_adapter_attributes_from_linear",),
    distribution="nemo_toolkit",
    version="2.7.3",
    reason="As for LoRA: a gradient is dropped with sequence parallelism.",
    digest="aa5af32396e41c83",
    reads=_GATHERED,
    link="https://github.com/NVIDIA/TransformerEngine/pull/697",
)
CROSS_ENTROPY = Patch(
    owner="megatron.core.models.common.language_module.language_module",
    names=("te_parallel_cross_entropy",),
    distribution="megatron-core",
    version="0.15.3",
    reason=(
        "Transformer Engine 2.9 reads the gradient of the losses as contiguous memory, and "
        "Megatron-Core passes a transposed view: tokens are weighed with other tokens' masks."
    ),
    digest="135311bdd792d0a2",
    reads=(
        "megatron.core.models.common.language_module.language_module:"
        "LanguageModule.compute_language_model_loss",
        "megatron.core.extensions.transformer_engine:te_parallel_cross_entropy",
    ),
    where="Transformer Engine",
)

# ---- Training: time and memory (performance.py and the modules that it applies) ----

FROZEN_LINEAR = Patch(
    owner="megatron.core.tensor_parallel.layers:LinearWithFrozenWeight",
    names=("backward",),
    distribution="megatron-core",
    version="0.15.3",
    reason="A gradient of [sequence, 1, vocabulary] is multiplied vector by vector.",
    digest="53c675bd54eb955f",
)
LORA_FORWARD = Patch(
    owner="nemo.collections.llm.peft.lora:LoRALinear",
    names=("forward",),
    distribution="nemo_toolkit",
    version="2.7.3",
    reason="The adapter's product is scaled, kept and added. Here it is added in place.",
    digest="bb05c10eeffcb72b",
)
TEARDOWN = Patch(
    owner="lightning.pytorch.strategies:Strategy",
    names=("teardown",),
    distribution="lightning",
    version="2.4.0",
    reason="It copies the model and the optimizer to the host after training: 44 s at 8 B.",
    digest="7faf5db879ea2968",
    source=("lightning.pytorch.strategies.strategy:Strategy.teardown",),
)
EMBEDDING = Patch(
    owner="megatron.core.tensor_parallel.layers",
    names=("F",),
    distribution="megatron-core",
    version="0.15.3",
    reason="The embedding makes a whole gradient of [vocabulary, hidden] for each micro-batch.",
    digest="e4b5ce726bb0e57f",
    reads=("megatron.core.tensor_parallel.layers:VocabParallelEmbedding.forward",),
    where="Transformer Engine",
)
OUTPUT_LAYER = Patch(
    owner="megatron.core.tensor_parallel.layers",
    names=("fused_weight_gradient_mlp_cuda", "_grad_accum_fusion_available"),
    distribution="megatron-core",
    version="0.15.3",
    reason="Without Apex's extension the output layer makes a whole gradient for each micro-batch.",
    digest="657581571d9a027e",
    reads=(
        "megatron.core.tensor_parallel.layers:"
        "LinearWithGradAccumulationAndAsyncCommunication.backward",
    ),
    where="Transformer Engine",
)
ADAM_KERNEL = Patch(
    owner="transformer_engine_torch",
    names=("multi_tensor_adam_param_remainder",),
    distribution="transformer-engine",
    version="2.9.0",
    reason="One pass over memory clips gradients, steps AdamW and writes both halves of weights.",
    digest="1fc7365e3743f3bb",
    source=("transformer_engine.pytorch.optimizers.fused_adam:FusedAdam.step",),
    where="Transformer Engine",
)
CLIPPING_FACTOR = Patch(
    owner="megatron.core.optimizer.optimizer",
    names=("clip_grad_by_total_norm_fp32",),
    distribution="megatron-core",
    version="0.15.3",
    reason="Scaling all gradients beforehand is one more pass over them.",
    digest="9bad70db820870dc",
    reads=("megatron.core.optimizer.clip_grads:clip_grad_by_total_norm_fp32",),
    where="Transformer Engine",
)
_STATES = ("_get_main_param_and_optimizer_states", "_set_main_param_and_optimizer_states")
MASTER_WEIGHTS = Patch(
    owner="megatron.core.optimizer.distrib_optimizer:DistributedOptimizer",
    names=_STATES,
    distribution="megatron-core",
    version="0.15.3",
    reason=(
        "Float32 weights are kept as the bfloat16 ones and their lower 16 bits; checkpoints hold "
        "whole ones."
    ),
    digest="6db924bdc96eb111",
    where="Transformer Engine",
)
OPTIMIZER_SAVE = Patch(
    owner="megatron.core.optimizer.distrib_optimizer:DistributedOptimizer",
    names=("sharded_param_state_fully_reshardable",),
    distribution="megatron-core",
    version="0.15.3",
    reason=(
        "It gathers the state of all weights at once: 8 bytes a weight of the GPU, and 24 of the "
        "host on every rank. Here one weight's state is gathered at a time."
    ),
    digest="c7febc1cb92d8f10",
    where="Transformer Engine",
)
OPTIMIZER_LOAD = Patch(
    owner="transformer_engine.pytorch.optimizers:FusedAdam",
    names=("load_state_dict",),
    distribution="transformer-engine",
    version="2.9.0",
    reason="It copies the state twice: 26 bytes a weight of the GPU where training takes 16.",
    digest="da0b465d689fa8c9",
    source=("transformer_engine.pytorch.optimizers.fused_adam:FusedAdam.load_state_dict",),
    where="Transformer Engine",
)
PACKED_ANGLES = Patch(
    owner="megatron.core.transformer.attention:Attention",
    names=("forward",),
    distribution="megatron-core",
    version="0.15.3",
    reason=(
        "Queries and keys of packed rows are rotated one after the other, each after a copy. Here "
        "one kernel rotates both, as it does for rows of one length."
    ),
    digest="7503aa8e1b2ec052",
    where="Transformer Engine",
)
PACKED_ROTATION = Patch(
    owner="megatron.core.transformer.attention:SelfAttention",
    names=("get_query_key_value_tensors",),
    distribution="megatron-core",
    version="0.15.3",
    reason="It rotates queries and keys by the angles that Attention.forward kept.",
    digest="90e6314875d3025d",
    where="Transformer Engine",
)
SWIGLU = Patch(
    owner="megatron.core.fusions.fused_bias_swiglu",
    names=("swiglu_back",),
    distribution="megatron-core",
    version="0.15.3",
    reason="A kernel takes two thirds of the time of the one that torch.compile makes.",
    digest="510af73ef1dbfe44",
    where="Transformer Engine",
)
ROTARY_EMBEDDING = Patch(
    owner="megatron.core.transformer.attention",
    names=("apply_fused_qkv_rotary_pos_emb",),
    distribution="megatron-core",
    version="0.15.3",
    reason="A kernel takes half of the time of Transformer Engine's.",
    digest="4a584b4d20cea7bf",
    reads=("megatron.core.transformer.attention:Attention.forward",),
    where="Transformer Engine",
)
FP8_GRADIENTS = Patch(
    owner="transformer_engine.pytorch.module.base:TransformerEngineBaseModule",
    names=("grad_output_preprocess",),
    distribution="transformer-engine",
    version="2.9.0",
    reason="LayerNormLinear makes a transpose in FP8 that nothing reads where weights are frozen.",
    digest="19009d63f1336bec",
    where="Transformer Engine",
)

PATCHES = tuple(value for value in tuple(globals().values()) if isinstance(value, Patch))
