"""Settings of stage=prepare: how rows become a dataset."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, WithJsonSchema

from pipeline.config.section import Form, Section, Share

# Kinds of personal data that Presidio finds by patterns and checksums, and its recognizers.
PII = {
    "EMAIL_ADDRESS": "EmailRecognizer",
    "PHONE_NUMBER": "PhoneRecognizer",
    "CREDIT_CARD": "CreditCardRecognizer",
    "IBAN_CODE": "IbanRecognizer",
    "IP_ADDRESS": "IpRecognizer",
    "CRYPTO": "CryptoRecognizer",
    "US_SSN": "UsSsnRecognizer",
    "UK_NHS": "NhsRecognizer",
    "ES_NIF": "EsNifRecognizer",
    "IT_FISCAL_CODE": "ItFiscalCodeRecognizer",
}
ALL_PII = "all"


def _kind(name: str) -> str:
    if name not in PII and name != ALL_PII:
        raise ValueError(f"choose from {', '.join((*PII, ALL_PII))}")
    return name


_SCHEMA: dict[str, Any] = {"type": "string", "enum": [*PII, ALL_PII]}
Pii = Annotated[str, AfterValidator(_kind), WithJsonSchema(_SCHEMA)]


class PrepareConfig(Section):
    """How rows become a dataset."""

    max_length: int = Field(
        ge=8,
        le=2**24,
        description="Tokens of a rendered conversation; a longer row is refused. "
        "null: 4,096, or the model's positions if fewer",
    )
    validation_share: float = Field(
        ge=0, le=0.5, description="Share of the training rows that are kept for validation"
    )
    # Below 0.9 the search for candidates would miss pairs (pipeline/data/deduplication.py).
    near_duplicate_threshold: float = Field(
        ge=0.9, le=1, description="Similarity to another training row from which a row is dropped"
    )
    leak_threshold: float = Field(
        ge=0.9, le=1, description="Similarity to a test question from which a row is dropped"
    )
    max_reject_share: Share = Field(description="Share of refused rows above which the stage fails")
    mask_pii: tuple[Pii, ...] = Field(
        description="Kinds of personal data to mask in all rows; all: every kind"
    )
    samples: int = Field(ge=0, le=1_000, description="Rendered conversations to print")
    engine: Literal["local", "ray"] = Field(
        description="Where rows are read and rendered: in this process, or by tasks on Ray; the "
        "rows and bytes are the same"
    )
    ray_address: Annotated[str, Form(r"auto|[\w.:/\[\]-]{1,255}", "auto, or HOST:PORT")] | None = (
        Field(description="Ray cluster, as HOST:PORT or auto; null starts Ray on this machine")
    )
