"""All metrics of a model's answers. One that fails costs a line, and the others are kept."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.core.console import get_console
from pipeline.core.errors import PipelineError
from pipeline.evaluation.confidence import Difference, Estimate, Sample, estimate, paired_difference
from pipeline.evaluation.metrics import Answers, Metric, Values
from pipeline.evaluation.resources import Resources
from pipeline.evaluation.slices import Slice, places_of


@dataclass(frozen=True)
class Measured:
    """A model's answers, and its metrics' values by name.

    failures: why a metric could not be measured, by its name.
    """

    answers: Answers
    samples: Mapping[str, Sample]
    failures: Mapping[str, str]


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are drawn. samples: how many resamples."""

    samples: int
    seed: int

    def estimate(
        self, metric: Metric, measured: Measured, places: Sequence[int] | None = None
    ) -> Estimate | None:
        """A metric of all questions, or of those at some places; None if it has no value there."""
        sample = measured.samples.get(metric.name)
        if sample is None:
            return None
        sample = sample if places is None else sample.at(places)
        return estimate(metric, sample, samples=self.samples, seed=self.seed)

    def difference(
        self,
        metric: Metric,
        ours: Measured,
        theirs: Measured,
        slice: Slice | None = None,
        *,
        margin: float = 0.0,
    ) -> Difference | None:
        """A metric of one model less that of another on the same questions, of a slice of them."""
        samples = [side.samples.get(metric.name) for side in (ours, theirs)]
        a, b = samples
        if a is None or b is None:
            return None
        if slice is not None:
            places = places_of(slice, ours.answers.asked)
            a, b = a.at(places), b.at(places)
        return paired_difference(metric, a, b, samples=self.samples, seed=self.seed, margin=margin)


def measure(
    metrics: Mapping[str, Metric], answers: Answers, resources: Resources, *, served: bool = False
) -> Measured:
    """Every metric of a model's answers.

    served: only those that a served engine has.
    """
    samples: dict[str, Sample] = {}
    failures: dict[str, str] = {}
    for name, metric in metrics.items():
        if served and not metric.served:
            continue
        try:
            weights = metric.weights(answers) if metric.weights else None
            values = values_of(metric, resources)(answers)
        except PipelineError as error:
            failures[name] = str(error)
            get_console().print(
                f"[yellow]{name} is not measured:[/] {error}", soft_wrap=True, highlight=False
            )
            continue
        samples[name] = Sample(values, weights)
    return Measured(answers, samples, failures)


def values_of(metric: Metric, resources: Resources) -> Values:
    """The function that gives a metric's values, with what it needs.

    Raises:
        PipelineError: a file that it needs cannot be used.
    """
    if metric.values is not None:
        return metric.values
    assert metric.bind is not None, metric.name
    return metric.bind(resources)
