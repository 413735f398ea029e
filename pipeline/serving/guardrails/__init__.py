"""Checks of requests and answers with NeMo Guardrails (serve.guardrails)."""
