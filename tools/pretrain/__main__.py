"""Makes the bundled base model from nothing, or another one of its kind.

    python -m tools.pretrain OUT [--steps 5000] …     # OUT/hf is the model's folder
    python -m tools.pretrain --help                   # every setting with its default

The same command resumes from the newest checkpoint when it was killed. Processes that it starts
import this file again, so that it imports nothing heavy.
"""

import sys
from collections.abc import Sequence

from pipeline.core.console import get_console
from pipeline.core.errors import PipelineError


def main(arguments: Sequence[str]) -> int:
    from tools.pretrain.model import make
    from tools.pretrain.settings import parse

    try:
        settings, out = parse(arguments)
        command = " ".join(["python", "-m", "tools.pretrain", *arguments])
        made = make(settings, out, command=command)
    except PipelineError as error:
        print(f"pretrain: {type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("pretrain: interrupted: the same command resumes where it stopped", file=sys.stderr)
        return 130
    get_console().print(
        f"[green]✓[/] {out / 'hf'}: {made['tokens']:,} tokens in {made['seconds']:.0f} s, "
        f"final loss {made['final_loss']:.4f}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
