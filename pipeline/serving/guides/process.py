"""A process that tries out guides, with limits of processor time and memory.

A short schema can ask for hours of work or gigabytes: here that ends only this process. It reads
one JSON object a line, first the tokenizer and then guides, and answers each with one.
"""

import json
import resource
import signal
import sys
from pathlib import Path
from typing import Any, TextIO

from pipeline.engines.base import Guide
from pipeline.engines.batching.guide_errors import Unusable
from pipeline.engines.batching.guided_decoding import Matching, compile_guide, lark_of

# Limits of one guide; a schema of 2,000 properties takes 0.4 s and 1 MiB. Memory: beyond what the
# process needs without a guide.
CPU_SECONDS, MEMORY_BYTES = 2.0, 256 << 20


def main() -> None:
    """Arguments: seconds of processor time, and bytes of memory, for each guide."""
    # The server ends the process by closing its input; a signal to the group is for the server.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    import llguidance
    import numpy as np

    cpu_seconds, memory_bytes = float(sys.argv[1]), int(sys.argv[2])
    first = json.loads(sys.stdin.readline())
    tokens = llguidance.LLTokenizer(first["tokenizer"], eos_token=first["stop_ids"])
    logits = np.zeros(tokens.vocab_size, np.float32)
    first_guide = Guide("json_object", "")
    compiled = compile_guide(tokens, first_guide)
    Matching(compiled, tokens.vocab_size, first_guide.kind).mask(logits)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + memory_bytes,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answer(sys.stdout, {})
    for line in sys.stdin:
        # SIGPROF ends the process.
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
        found = try_out(tokens, Guide(**json.loads(line)))
        signal.setitimer(signal.ITIMER_PROF, 0)
        answer(sys.stdout, found)


def try_out(tokens: Any, guide: Guide) -> dict[str, str]:
    """The guide as an engine gets it, or why it is refused."""
    import numpy as np

    try:
        if guide.kind == "grammar":
            guide = Guide("lark", lark_of(guide.text))
        matching = Matching(compile_guide(tokens, guide), tokens.vocab_size, guide.kind)
        matching.mask(np.zeros(tokens.vocab_size, np.float32))
    except Unusable as error:
        return {"error": str(error)}
    return {"kind": guide.kind, "text": guide.text}


def answer(stream: TextIO, found: dict[str, str]) -> None:
    print(json.dumps(found), file=stream, flush=True)


if __name__ == "__main__":
    main()
