"""Instructions in words -> token ids: byte-level, built in place, nothing to download.

Ids 0 to 3 are padding, end, beginning and the image token (Gemma's order); byte b is 4 + b.
"""

from collections.abc import Callable

PADDING, END, BEGIN, IMAGE = 0, 1, 2, 3
VOCABULARY = 4 + 256

Tokeniser = Callable[[str], list[int]]  # instruction -> ids


class ByteTokeniser:
    """The tokeniser of models without one of their own."""

    def __call__(self, instruction: str) -> list[int]:
        """Ids of the beginning, the bytes of the instruction and a newline, which ends a PaliGemma prompt."""
        return [BEGIN, *(4 + byte for byte in f"{instruction}\n".encode())]


class FolderTokeniser:
    """The tokeniser that lies beside pretrained weights (`tokenizer.json`)."""

    def __init__(self, path: str):
        from transformers import AutoTokenizer

        self._tokeniser = AutoTokenizer.from_pretrained(path, local_files_only=True)

    def __call__(self, instruction: str) -> list[int]:
        ids = self._tokeniser(f"{instruction}\n", add_special_tokens=False)["input_ids"]
        begin = self._tokeniser.bos_token_id
        return ids if begin is None else [begin, *ids]
