"""Texts as numbers of pieces of words: Hugging Face's tokenizer.json, and SentencePiece models with the ids of XLM-R."""

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from mae_pp_jax.core import storage
from mae_pp_jax.core.errors import UserError

LENGTH = 102  # tokens of a text in MAWS-CLIP: at most 100 pieces between begin and end
PADDING = ("<pad>", "[PAD]")  # where tokenizer.json does not say what texts are filled up with
# XLM-R's ids, from fairseq: these four, the pieces of the model from its third on, and <mask>.
BEGIN, PAD, END, UNKNOWN = range(4)
_SURROGATE = re.compile("[\ud800-\udfff]")  # half a character, which no tokenizer takes
_MANY = 64  # texts from which on the threads of SentencePiece are worth starting


class Tokens(NamedTuple):
    """Texts in numbers.

    Attributes:
      ids: [texts, length] int32, begin, pieces, end, then padding.
      lengths: [texts] int32, tokens without padding.
      cut: [texts] bool, whether a text had more pieces than there is room for.
    """

    ids: np.ndarray
    lengths: np.ndarray
    cut: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        """[texts, length] bool, True at tokens that are no padding."""
        return np.arange(self.ids.shape[1]) < self.lengths[:, None]

    @property
    def empty(self) -> np.ndarray:
        """[texts] bool, whether there is nothing between begin and end."""
        return self.lengths == 2


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Turns texts into tokens; threads may share it.

    Attributes:
      pieces: texts → the numbers of the pieces of each.
      begin: token before the pieces.
      end: token after them.
      pad: what texts are filled up with.
      vocabulary: numbers there are, one more than the largest.
      length: tokens of every text, with padding.
      sha256: of all that determines tokens but `length`; models know by it which tokenizer they were trained with.
    """

    pieces: Callable[[Sequence[str]], list[list[int]]]
    begin: int
    end: int
    pad: int
    vocabulary: int
    length: int
    sha256: str

    def encode(self, texts: Sequence[str]) -> Tokens:
        """Texts → begin, as many pieces as there is room for, end, padding."""
        found = self.pieces([_SURROGATE.sub("\ufffd", text) for text in texts])
        room = self.length - 2
        ids = np.full((len(found), self.length), self.pad, np.int32)
        counts = np.asarray([len(pieces) for pieces in found], np.int32).reshape(-1)
        lengths = np.minimum(counts, room) + 2
        ids[:, 0] = self.begin
        for row, pieces in zip(ids, found, strict=True):
            kept = pieces[:room]
            row[1 : len(kept) + 1] = kept
            row[len(kept) + 1] = self.end
        return Tokens(ids, lengths, counts > room)

    def check_table(self, rows: int, field: str) -> None:
        """Raises `UserError` where a table of so many rows lacks one for a token; `field` is the key that named this."""
        if self.vocabulary > rows:
            raise UserError(
                f"{field}: its vocabulary of {self.vocabulary:,} is larger than the {rows:,} rows of the text encoder's "
                "table; give the tokenizer that the encoder was trained with"
            )


def load(path: storage.PathLike, length: int = LENGTH, field: str = "config.tokenizer") -> Tokenizer:
    """The tokenizer of a file, or of the folder of a published model.

    Args:
      path: a tokenizer.json, a SentencePiece model (.model), or a folder with one of them.
      length: tokens of every text, begin and end included.
      field: the key that names it, for errors.

    Raises:
      UserError: no such file, it is damaged or of another kind, a package is missing, or `length` leaves no room.
    """
    if length < 3:
        raise UserError(
            f"{field}: texts of {length} tokens have no room for a piece between begin and end; use 3 or more"
        )
    if not path:
        raise UserError(
            f"{field}: no tokenizer is given; name a tokenizer.json, a SentencePiece .model or their folder"
        )
    file = _find(storage.path(path, field), field)
    read = _sentencepiece if file.suffix == ".model" else _huggingface
    return read(file, storage.read_bytes(file), length, field)


def _find(path: storage.Path, field: str) -> storage.Path:
    if storage.is_dir(path):
        names = storage.names(path)
        models = [name for name in names if name.endswith(".model")]
        found = [name for name in ("tokenizer.json", "sentencepiece.bpe.model") if name in names] or models
        if not found:
            raise UserError(
                f"{field}: {path} holds neither tokenizer.json nor a SentencePiece model (*.model); get one of them from "
                "where the text encoder comes from"
            )
        if len(found) > 1 and found == models:
            raise UserError(f"{field}: {path} holds several SentencePiece models ({', '.join(models)}); name one")
        return path / found[0]
    if not storage.is_file(path):
        raise UserError(
            f"{field}: {path} does not exist; give a tokenizer.json, a SentencePiece .model or their folder"
        )
    if path.suffix not in (".json", ".model"):
        raise UserError(f"{field}: {path} must end in .json (tokenizer.json) or .model (SentencePiece)")
    return path


def _missing(package: str, field: str) -> UserError:
    return UserError(f"{field}: it is read by the package {package}; install it: pip install 'mae_pp_jax[text]'")


def _huggingface(file: storage.Path, content: bytes, length: int, field: str) -> Tokenizer:
    try:
        import tokenizers
    except ImportError as error:
        raise _missing("tokenizers", field) from error
    try:
        settings = json.loads(content)
        # Lengths are ours; some files cut and fill up by themselves.
        padding = settings.pop("padding", None) or {}
        settings.pop("truncation", None)
        engine = tokenizers.Tokenizer.from_str(json.dumps(settings))
    except Exception as error:  # the package raises bare Exceptions
        raise UserError(f"{field}: {file} is no readable tokenizer.json ({error}); get a fresh copy") from error
    around = engine.encode("").ids
    if len(around) != 2:
        raise UserError(
            f"{field}: {file} puts {len(around)} tokens around a text; text encoders here are trained with one before "
            "and one after it"
        )
    names = [padding["pad_token"]] if "pad_token" in padding else PADDING
    pad = next((number for name in names if (number := engine.token_to_id(name)) is not None), None)
    if pad is None:
        raise UserError(f"{field}: {file} has no token for padding ({' or '.join(names)}); add it to its added_tokens")

    def pieces(texts: Sequence[str]) -> list[list[int]]:
        return [found.ids for found in engine.encode_batch_fast(list(texts), add_special_tokens=False)]

    canonical = json.dumps(settings, sort_keys=True).encode()
    vocabulary = max(engine.get_vocab(with_added_tokens=True).values()) + 1
    return Tokenizer(pieces, *around, pad, vocabulary, length, _hash(b"tokenizer.json", canonical))


def _sentencepiece(file: storage.Path, content: bytes, length: int, field: str) -> Tokenizer:
    try:
        import sentencepiece
    except ImportError as error:
        raise _missing("sentencepiece", field) from error
    try:
        engine = sentencepiece.SentencePieceProcessor(model_proto=content)
    except (RuntimeError, ValueError, TypeError) as error:
        raise UserError(f"{field}: {file} is no readable SentencePiece model; get a fresh copy") from error
    first = (engine.unk_id(), engine.bos_id(), engine.eos_id())
    if first != (0, 1, 2):
        raise UserError(
            f"{field}: {file} numbers <unk>, <s> and </s> as {first}; models are read as XLM-R's, with (0, 1, 2): convert "
            "it to tokenizer.json with the code it comes from"
        )
    return Tokenizer(
        functools.partial(_fairseq_ids, engine),
        BEGIN,
        END,
        PAD,
        len(engine) + 2,
        length,
        _hash(b"sentencepiece", content),
    )


def _fairseq_ids(engine, texts: Sequence[str]) -> list[list[int]]:
    """The model's pieces in XLM-R's numbers: each is one more, and what is unknown (0) is 3."""
    found = engine.encode(list(texts), out_type=int, num_threads=-1 if len(texts) >= _MANY else 1)
    return [[piece + 1 if piece else UNKNOWN for piece in pieces] for pieces in found]


def _hash(kind: bytes, content: bytes) -> str:
    return hashlib.sha256(kind + b"\0" + content).hexdigest()
