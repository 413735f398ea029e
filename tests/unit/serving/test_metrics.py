"""The metric names that dashboards for NIM and vLLM use."""

import pytest

from pipeline.engines.base import Load
from pipeline.serving.metrics import Metrics

# https://docs.nvidia.com/nim/large-language-models/latest/observability.html
OF_NIM = """gpu_cache_usage_perc num_requests_running num_requests_waiting num_request_max
prompt_tokens_total generation_tokens_total time_to_first_token_seconds_bucket
time_per_output_token_seconds_bucket e2e_request_latency_seconds_bucket request_prompt_tokens_bucket
request_generation_tokens_bucket request_success_total request_finish_total request_failure_total"""
# https://docs.vllm.ai/en/stable/usage/metrics/, without the prefix `vllm:`
OF_VLLM = """request_queue_time_seconds_bucket request_prefill_time_seconds_bucket
request_decode_time_seconds_bucket"""


def names(metrics: Metrics) -> set[str]:
    return {line.partition("{")[0] for line in metrics.text().decode().splitlines()}


@pytest.mark.parametrize("name", [*OF_NIM.split(), *OF_VLLM.split()])
def test_nims_and_vllms_names_are_there_with_the_models(name: str) -> None:
    metrics = Metrics("bank", lambda: Load(1, 2, 0.25), slots=4)
    metrics.finished("stop")
    metrics.failed(400)
    lines = [s for s in metrics.text().decode().splitlines() if s.partition("{")[0] == name]
    assert lines
    assert all('model_name="bank"' in line for line in lines)


def test_gauges_are_read_at_the_scrape() -> None:
    loads = iter([Load(0, 0, 0.0), *[Load(3, 2, 0.25)] * 6])  # also for vLLM's names
    text = Metrics("bank", lambda: next(loads), slots=4).text().decode()
    assert 'num_requests_running{model_name="bank"} 3.0' in text
    assert 'num_requests_waiting{model_name="bank"} 2.0' in text
    assert 'gpu_cache_usage_perc{model_name="bank"} 0.25' in text


def test_an_unknown_cache_use_is_not_exported() -> None:
    assert "gpu_cache_usage_perc" not in names(Metrics("bank", lambda: Load(0, 0), slots=4))
