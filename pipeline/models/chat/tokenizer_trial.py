"""Loads a stranger's tokenizer and tries it on a few texts, as a process of its own.

    python -m pipeline.models.chat.tokenizer_trial FOLDER

Prints the added tokens and their ids as JSON. Exit 3: a line that says why it is refused. Any
other end: the library did not survive it.
"""

import json
import string
import sys
from pathlib import Path

from pipeline.core.errors import DataError
from pipeline.models.chat.tokenizer import load_tokenizer, read_json, special_tokens
from pipeline.models.tokenizer_checks import limit_process

REPEATED = 2_000  # characters of one kind: a regular expression that tries everything takes long


def texts() -> list[str]:
    """Texts with every printable character, and long runs of each."""
    runs = [character * REPEATED + "\x01" for character in (*string.printable, "é", "中", "🙂")]
    return [string.printable, "Grüße, 世界! 🙂\n\n\tif x == 1:\n", *runs, " a" * REPEATED]


def main(folder: Path) -> int:
    limit_process()
    try:
        config = read_json(folder / "tokenizer_config.json")
        fallback = read_json(folder / "special_tokens_map.json", required=False)
        merged = {**fallback, **{k: v for k, v in config.items() if v is not None}}
        tokenizer = load_tokenizer(folder, merged, special_tokens(folder, merged))
    except DataError as error:
        print(error)
        return 3
    for text in texts():
        tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids)
    added = tokenizer.get_added_tokens_decoder()
    print(json.dumps({token.content: number for number, token in added.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
