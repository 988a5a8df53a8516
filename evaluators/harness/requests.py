"""What does a task ask of a model? Prompts and tokens, made once and kept under a hash of all they depend on."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from evaluators.errors import DataError
from evaluators.harness.documents import Part
from evaluators.harness.task_index import cache
from evaluators.splits import digest

VERSION = 2
"""Part of every file's name: a change of what is kept is a change of all files."""

TOKENIZER = ("*token*.json", "vocab*", "merges.txt", "*.model", "chat_template*", "special_tokens_map.json")

LIKELIHOOD, ROLLING, GENERATE = "loglikelihood", "loglikelihood_rolling", "generate_until"


Pairs = tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]


@dataclass(frozen=True)
class Request:
    """One thing asked of a model for a document.

    `pairs` are tokens of (context, continuation): one for a log-likelihood, one a window for a rolling one; for text to
    be generated, the prompt and nothing.
    """

    row: int  # within its part
    place: int  # among the document's requests
    kind: str
    pairs: Pairs
    arguments: str = ""  # of text to be generated, as JSON
    repeats: int = 1


@dataclass(frozen=True)
class Prompting:
    """How prompts are made, as `simple_evaluate` takes it."""

    system_instruction: str | None
    apply_chat_template: bool
    fewshot_as_multiturn: bool
    fewshot_seed: int
    seeds: tuple[int, int, int]
    """Of Python, NumPy and torch, from which functions of tasks may draw."""
    truncate: bool


def requests(name: str, part: Part, lm: Any, folder: Path, how: Prompting, files: Sequence[Path] = ()) -> list[Request]:
    """The requests of a part's used documents, in their order; from the disk where they were made before.

    `files` are the user's that the task was read from: another file, other prompts.
    Raises `DataError` for a document with an empty answer, or a prompt that is longer than the model's context.
    """
    file = cache() / "requests" / f"{_key(part, lm, folder, how, files)}.safetensors"
    found = _read(file)
    if found is None:
        with _alone(file):
            found = _read(file)  # another worker may have made them just now
            if found is None:
                found = _make(name, part, lm, how)
                _write(file, found)
    _check(name, part, found, lm, how)
    return found


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """One process makes a file; on a disk that does not let us lock, each makes its own."""
    with ExitStack() as stack:
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            stack.enter_context(FileLock(file.with_suffix(".lock")))
        yield


def _make(name: str, part: Part, lm: Any, how: Prompting) -> list[Request]:
    view = part.view
    view.set_fewshot_seed(seed=how.fewshot_seed)
    metadata = (view.config["task"], 0, view.config["repeats"] or 1)
    chat = lm.apply_chat_template if how.apply_chat_template else None
    made = []
    for row in part.used.tolist():
        doc = part.docs[row]
        try:
            context = view.fewshot_context(
                doc,
                num_fewshot=view.config["num_fewshot"] or 0,
                system_instruction=how.system_instruction,
                apply_chat_template=how.apply_chat_template,
                fewshot_as_multiturn=how.fewshot_as_multiturn,
                chat_template=chat,
                gen_prefix=view.doc_to_prefix(doc),
            )
            asked = view.construct_requests(
                doc=doc, ctx=context, metadata=metadata, apply_chat_template=how.apply_chat_template, chat_template=chat
            )
            every = asked if isinstance(asked, list) else [asked]
            made += [_request(row, instance, lm) for instance in sorted(every, key=lambda i: i.idx)]
        except DataError as error:
            raise DataError(f"evaluator {name!r}: task {part.task}, document {row}: {error}") from None
        except Exception as error:  # templates and the functions of tasks raise whatever they like
            raise DataError(
                f"evaluator {name!r}: task {part.task}, document {row}: no prompt can be made of it "
                f"({type(error).__name__}: {error}); correct the document or the task"
            ) from error
    return made


def _request(row: int, instance: Any, lm: Any) -> Request:
    """One of the harness's requests in tokens, made by the harness's own rules."""
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    kind, repeats = str(instance.request_type), int(instance.repeats or 1)
    if kind == GENERATE:
        prompt, arguments = instance.args
        tokens = lm.tok_batch_encode([prompt])[0][0].tolist() if prompt else []
        return Request(row, instance.idx, kind, _tuples([(tokens, [])]), json.dumps(arguments), repeats)
    if kind == ROLLING:
        (text,) = instance.args
        windows = get_rolling_token_windows(
            token_list=lm.tok_encode(text), prefix_token=lm.prefix_token_id, max_seq_len=lm.max_length, context_len=1
        )
        return Request(row, instance.idx, kind, _tuples([make_disjoint_window(window) for window in windows]))
    if kind != LIKELIHOOD:
        raise DataError(f"requests of kind {kind!r} are not known here; use another task")
    context, answer = instance.args
    if not answer.strip(" "):  # the delimiter alone; a line's end may be an answer
        raise DataError("an answer is empty; fill it in or drop the document")
    if context == "":  # as in the harness: the prefix token stands for the missing context
        tokens = lm.tok_encode(answer, add_special_tokens=False)
        pair = ([lm.prefix_token_id], tokens) if lm.prefix_token_id != tokens[0] else (tokens[:1], tokens[1:])
    else:
        pair = lm._encode_pair(context, answer)
    return Request(row, instance.idx, kind, _tuples([pair]))


def _tuples(
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
    return tuple((tuple(context), tuple(answer)) for context, answer in pairs)


def _check(name: str, part: Part, found: Sequence[Request], lm: Any, how: Prompting) -> None:
    """Raise `DataError` for the first document that the model cannot be asked."""
    for request in found:
        where = f"evaluator {name!r}: task {part.task}, document {request.row}"
        empty = [not pair[0 if request.kind == GENERATE else 1] for pair in request.pairs]
        if not empty or any(empty):
            what = "prompt" if request.kind == GENERATE else "answer"
            raise DataError(f"{where}: the {what} is empty, or no token of its own; fill it in or drop the document")
        room, need = lm.max_length, sum(map(len, request.pairs[0]))
        what = f"a prompt of {need} tokens"
        if request.kind == GENERATE:
            wanted = limit(request, lm)
            what += f" and an answer of up to {wanted}"
            if wanted >= lm.max_length:
                raise DataError(
                    f"{where}: {what}, in a context of {room} tokens; lower max_gen_toks under `gen_kwargs`"
                )
            need += wanted
        elif request.kind == LIKELIHOOD:
            room += 1  # the answer's last token is not read
            if len(request.pairs[0][1]) > lm.max_length:
                raise DataError(f"{where}: an answer of {len(request.pairs[0][1])} tokens, in a context of {room - 1}")
        if request.kind != ROLLING and need > room and not how.truncate:
            raise DataError(
                f"{where}: {what}, in a context of {lm.max_length} tokens; use fewer examples (num_fewshot), drop the "
                "document, or say truncate: true, and the harness's cut from the left is made"
            )


def limit(request: Request, lm: Any) -> int:
    """How many tokens may be generated."""
    from lm_eval.models.utils import normalize_gen_kwargs

    return int(normalize_gen_kwargs(json.loads(request.arguments), lm.max_gen_toks)["max_gen_toks"])


def _key(part: Part, lm: Any, folder: Path, how: Prompting, files: Sequence[Path]) -> str:
    """A hash of all that prompts and tokens depend on: task, documents, examples, tokenizer, options, versions.

    Functions are told by name: those of the user's files by the files' own hashes, others by the versions.
    """
    import lm_eval
    import tokenizers
    import transformers

    view = part.view
    kept = sorted({path for pattern in TOKENIZER for path in folder.glob(pattern) if path.is_file()})
    pool = getattr(getattr(view, "sampler", None), "df", None) or []
    said = [
        VERSION,
        [lm_eval.__version__, transformers.__version__, tokenizers.__version__],
        view.config.to_dict(keep_callable=True),
        [digest(0, part.docs[row]).hex() for row in part.used.tolist()],
        [digest(0, doc).hex() for doc in pool],
        [[path.name, hashlib.sha256(path.read_bytes()).hexdigest()] for path in kept],
        # documents have digests of their own, and files of them may be large
        [hashlib.sha256(path.read_bytes()).hexdigest() for path in files if path.suffix in (".py", ".yaml", ".yml")],
        [lm.max_length, lm.add_bos_token, type(lm.tokenizer).__name__],
        [how.system_instruction, how.apply_chat_template, how.fewshot_as_multiturn, how.fewshot_seed, how.seeds],
        part.used.tolist(),
    ]
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=plain).encode()).hexdigest()[:32]


def plain(value: Any) -> Any:
    """For JSON: functions by their name, and what they are bound to. What is nothing of the kind stands as it prints:
    an address in memory costs the time to make prompts, and never gives old ones."""
    if isinstance(value, functools.partial):
        return [plain(value.func), value.args, value.keywords]
    if isinstance(value, set | frozenset):
        return sorted(map(repr, value))
    name = getattr(value, "__qualname__", None)
    return f"{getattr(value, '__module__', '')}.{name}" if callable(value) and name else repr(value)


def _write(file: Path, found: Sequence[Request]) -> None:
    """Keep requests, beside their place and renamed; a disk that does not let us is no reason to stop."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    pairs = [pair for request in found for pair in request.pairs]
    kinds = (LIKELIHOOD, ROLLING, GENERATE)
    arrays: dict[str, NDArray[Any]] = {
        "tokens": np.array([t for pair in pairs for side in pair for t in side], dtype=np.int32),
        "lengths": np.array([[len(side) for side in pair] for pair in pairs], dtype=np.int32).reshape(-1, 2),
        "requests": np.array(
            [[r.row, r.place, kinds.index(r.kind), len(r.pairs), r.repeats] for r in found], dtype=np.int64
        ).reshape(-1, 5),
    }
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        arguments = json.dumps([r.arguments for r in found])
        save_file(arrays, partial, metadata={"arguments": arguments, "sha256": _digest(arrays, arguments)})
        partial.replace(file)
    except (OSError, SafetensorError):
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _read(file: Path) -> list[Request] | None:
    """The requests that were kept; None where there are none, or the file is not whole."""
    from safetensors import SafetensorError, safe_open

    kinds = (LIKELIHOOD, ROLLING, GENERATE)
    try:
        with safe_open(file, framework="numpy") as kept:
            arrays = {key: kept.get_tensor(key) for key in ("tokens", "lengths", "requests")}
            said = kept.metadata()
        if said["sha256"] != _digest(arrays, said["arguments"]):  # a file with a hole, after a crash
            return None
        arguments = json.loads(said["arguments"])
    except (OSError, SafetensorError, ValueError, KeyError):
        return None
    tokens, lengths, rows = arrays.values()
    ends = np.cumsum(lengths.ravel()).tolist()
    starts = [0, *ends[:-1]]
    flat = tokens.tolist()
    sides = [tuple(flat[a:b]) for a, b in zip(starts, ends, strict=True)]
    found = []
    at = 0
    for (row, place, kind, count, repeats), said in zip(rows.tolist(), arguments, strict=True):
        pairs = tuple((sides[2 * i], sides[2 * i + 1]) for i in range(at, at + count))
        found.append(Request(row, place, kinds[kind], pairs, said, repeats))
        at += count
    return found


def _digest(arrays: Mapping[str, NDArray[Any]], arguments: str) -> str:
    found = hashlib.sha256(arguments.encode())
    for array in arrays.values():
        found.update(repr(array.shape).encode() + array.tobytes())
    return found.hexdigest()
