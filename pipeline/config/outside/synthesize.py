"""Settings of stage=synthesize."""

from pydantic import Field

from pipeline.config.endpoint import EndpointConfig
from pipeline.config.section import Place, Section, Share


class SynthesizeConfig(Section):
    """Rows of questions and answers, which a language model writes from documents."""

    folder: Place = Field(description="Folder with the documents")
    documents: tuple[str, ...] = Field(
        description="Documents, as globs below the folder: Markdown, text, HTML, PDF, DOCX"
    )
    to: Place = Field(
        description="Folder of the rows, which data.folder can name; a run into the same folder "
        "resumes"
    )
    endpoint: EndpointConfig
    chunk: int = Field(ge=200, le=100_000, description="Letters of a document that are asked about")
    questions: int = Field(ge=1, le=100, description="Questions to ask for about each chunk")
    support: Share = Field(
        description="Share of an answer's content words that its chunk must have; every number of "
        "it must be there, whatever the share"
    )
    prompt: Place | None = Field(
        description="File with the prompt, with {text} for the chunk, and if you like {title}, "
        "{section} and {questions}; null: the one in docs/synthesis.md"
    )
    guided: bool = Field(
        description="Hold answers to a JSON schema (response_format); false for a server that "
        "does not know it"
    )
