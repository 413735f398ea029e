"""Settings of stage=canary."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from pipeline.config.section import Count, Form, Place, Seconds, Section

Url = Annotated[
    str, Form(r"https?://[^\s/@]+(:\d+)?/?", "the address of a server, as http://127.0.0.1:8000")
]
Difference = Annotated[float, Field(gt=0, lt=1)]
Name = Annotated[str, Form(r"[\w.:-]{1,100}", "a name of HAProxy's configuration")]
Object = Annotated[str, Form(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", "the name of an object")]


class HaproxyConfig(Section):
    """The HAProxy that gives the candidate its share, by the weight of its server."""

    socket: str | None = Field(
        min_length=1,
        description="HAProxy's stats socket with level admin: a path, or HOST:PORT; null: HAProxy "
        "does not split the traffic",
    )
    backend: Name = Field(description="Name of the backend")
    candidate: Name = Field(
        description="Its server of the candidate; the others, whose weights stay, are stable"
    )


class HttpRouteConfig(Section):
    """The HTTPRoute of Kubernetes' Gateway API that splits the traffic between two services."""

    name: Object | None = Field(
        description="Name of the HTTPRoute; null: no HTTPRoute splits the traffic"
    )
    namespace: Object = Field(description="Its namespace")
    stable: Object = Field(description="Service of the servers that serve now")
    candidate: Object = Field(description="Service of the candidate")


class CanaryConfig(Section):
    """A candidate beside the version that serves: its share, and what decides about it."""

    stable: Url = Field(description="Server that serves now; of several, each address of its name")
    candidate: Url | None = Field(
        description="Server of the candidate; null: this command starts one of register.version"
    )
    haproxy: HaproxyConfig
    http_route: HttpRouteConfig
    share: Annotated[float, Field(gt=0, lt=1)] = Field(
        description="Share of the requests that the candidate gets; an HTTPRoute rounds it to "
        "whole percents"
    )
    error_margin: Difference = Field(
        description="By how much the candidate's share of failed requests may exceed the stable "
        "version's; 0.01 is one request in a hundred"
    )
    slow_margin: Difference = Field(
        description="The same of the share of slow requests, at each bound of the latency"
    )
    alpha: Annotated[float, Field(gt=0, le=0.5)] = Field(
        description="Chance that a candidate as good as the stable version is rolled back for a "
        "difference, however often one looks"
    )
    questions: Place | None = Field(
        description="JSON lines of conversations whose last answer is right: both versions are "
        "asked, and the gate's metrics compare; null: the test questions in artifacts/prepare"
    )
    recordings: Place | None = Field(
        description="Folder that the stable server records into (serve.record): the candidate is "
        "asked the same, and both answers are in the report; null: no shadow"
    )
    baseline: Count = Field(
        description="Requests of the stable server before the candidate gets any: the sample size "
        "follows from them"
    )
    requests: Count | None = Field(
        description="Most requests that the candidate gets; null: as many as the statistics ask for"
    )
    seconds: Seconds = Field(description="Most seconds that the canary takes")
    every: Seconds = Field(description="Seconds between two looks")
    down_seconds: Seconds = Field(
        description="Seconds for which the candidate may be not ready before it is rolled back"
    )

    @model_validator(mode="after")
    def _one_splits(self) -> Self:
        if self.haproxy.socket and self.http_route.name:
            raise ValueError(
                "give canary.haproxy.socket or canary.http_route.name: one of them splits the "
                "traffic"
            )
        if self.candidate is not None and self.candidate.rstrip("/") == self.stable.rstrip("/"):
            raise ValueError("stable and candidate are the same server: give two addresses")
        return self
