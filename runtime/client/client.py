"""What a server computes, as a model on this machine gives it.

>>> with Client("http://127.0.0.1:8080") as model:
...     model.embed(["MKTAYIAKQR", "GGAVL"]).shape
(2, 320)
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from functools import partial
from threading import Event
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from runtime.client.answers import arrays_of, by_label, json_of
from runtime.client.connection import JSON, NPZ, Answer, Connection
from runtime.client.parts import Bounds, Item, parts_of, proteins_of
from runtime.errors import EngineError, InputError
from runtime.pooling import Pool
from runtime.sequences import Many, One
from runtime.threads import at_least_1
from runtime.tokenizer import Unknown

if TYPE_CHECKING:
    from runtime.predict.scores import Prediction

Floats = NDArray[np.float32]
PerProtein = Literal["mean", "mean-with-eos", "cls"]
T = TypeVar("T")

FLOAT_BYTES = 4


class Client:
    """A server of ``esm2-run serve``, with the methods of ``Model``.

    Many proteins go in several requests, a few of them at once. A request that is refused because
    the server is full (429), starts or ends (503), or that is lost with its connection, is sent
    again: after what ``Retry-After`` says and a random time on top that grows. Needs httpx
    (``pip install 'esm2-engines[client]'``). A context manager; threads may share one.

    Args:
        url: such as ``http://127.0.0.1:8080``.
        token: of the server, if it wants one.
        timeout: seconds that one attempt may take.
        at_once: requests on their way.
        attempts: for each request.
        patience: seconds from a request's first attempt to its last, at most.

    Raises:
        InputError: an argument is wrong, or httpx is not installed.

    All methods raise:
        InputError: the server refuses what was sent, in its own words; or the token.
        UnsupportedError: the artifact does not offer this.
        EngineError: the server failed, did not answer in time, or has exchanged its artifact
            between two requests of one call.
    """

    def __init__(
        self, url: str, token: str | None = None, timeout: float = 300.0, *, at_once: int = 4,
        attempts: int = 10, patience: float = 300.0,
    ):  # fmt: skip
        at_least_1("at_once", at_once)
        at_least_1("attempts", attempts)
        self._at_once = at_once
        self._connection = Connection(url, token, timeout, at_once, attempts, patience)
        self._threads = ThreadPoolExecutor(at_once, "esm2-client")
        self._info: dict[str, Any] = {}
        self._is_closed = False

    def info(self) -> dict[str, Any]:
        """What serves, what it offers and takes: ``GET /info``."""
        answer = self._send("GET", "/info", None, JSON, (), Event())
        self._info = json_of(answer)
        return dict(self._info)

    @overload
    def embed(  # type: ignore[overload-overlap]
        self, sequences: One, pool: Pool | None = ..., layer: int | None = ..., *,
        unknown: Unknown = ..., upper: bool = ..., strip_stop: bool = ..., truncate: bool = ...,
    ) -> Floats: ...  # fmt: skip

    @overload
    def embed(
        self, sequences: Many, pool: PerProtein = ..., layer: int | None = ..., *,
        unknown: Unknown = ..., upper: bool = ..., strip_stop: bool = ..., truncate: bool = ...,
    ) -> Floats: ...  # fmt: skip

    @overload
    def embed(
        self, sequences: Many, pool: Literal["none"] | None, layer: int | None = ..., *,
        unknown: Unknown = ..., upper: bool = ..., strip_stop: bool = ..., truncate: bool = ...,
    ) -> list[Floats]: ...  # fmt: skip

    def embed(
        self, sequences: One | Many, pool: Pool | None = "mean", layer: int | None = None, *,
        unknown: Unknown = "error", upper: bool = False, strip_stop: bool = False,
        truncate: bool = False,
    ) -> Floats | list[Floats]:  # fmt: skip
        """Embeds proteins; as ``Model.embed``, but that a protein has at least one residue.

        Args:
            sequences: one sequence or record; or many in any iterable: sequences, pairs
                ``(id, sequence)``, records, or a mapping from ids to sequences.
            pool: ``"mean"`` over residues, ``"mean-with-eos"``, ``"cls"``, or None for one vector
                per residue.
            layer: an exported layer; None takes the last.
            unknown: what to do with characters outside the alphabet: ``"error"``, ``"x"`` or
                ``"unk"``.
            upper: take lower case as upper case.
            strip_stop: remove a single ``*`` at the end of a sequence.
            truncate: cut proteins that are longer than the server takes; else they are refused.

        Returns:
            ``[N, E]`` float32 in the order of ``sequences``, or N arrays ``[L, E]`` where ``pool``
            is None. Of one sequence ``[E]`` or ``[L, E]``.
        """
        options = _options(unknown, upper, strip_stop, truncate) | {"layer": layer}
        if pool in (None, "none"):
            return self._lists("/embed_all", "embeddings", sequences, options, self._width)
        parts = self._arrays(
            "/embed", "embeddings", sequences, options | {"pool": pool},
            lambda _: FLOAT_BYTES * self._width(),
        )  # fmt: skip
        if isinstance(sequences, One):
            one: Floats = parts[0][0][0]
            return one
        if not parts:
            return np.empty((0, self._width()), np.float32)
        return np.concatenate([values for values, _ in parts])

    @overload
    def embed_all(  # type: ignore[overload-overlap]
        self, sequences: One, layer: int | None = ..., *, unknown: Unknown = ...,
        upper: bool = ..., strip_stop: bool = ..., truncate: bool = ...,
    ) -> Floats: ...  # fmt: skip

    @overload
    def embed_all(
        self, sequences: Many, layer: int | None = ..., *, unknown: Unknown = ...,
        upper: bool = ..., strip_stop: bool = ..., truncate: bool = ...,
    ) -> list[Floats]: ...  # fmt: skip

    def embed_all(
        self, sequences: One | Many, layer: int | None = None, *, unknown: Unknown = "error",
        upper: bool = False, strip_stop: bool = False, truncate: bool = False,
    ) -> Floats | list[Floats]:  # fmt: skip
        """A vector for each residue: N arrays ``[L, E]``; ``embed`` with ``pool=None``."""
        return self.embed(
            sequences, None, layer, unknown=unknown, upper=upper, strip_stop=strip_stop,
            truncate=truncate,
        )  # fmt: skip

    @overload
    def logits(  # type: ignore[overload-overlap]
        self, sequences: One, columns: Literal[20, 33] = ..., *, unknown: Unknown = ...,
        upper: bool = ..., strip_stop: bool = ..., truncate: bool = ...,
    ) -> Floats: ...  # fmt: skip

    @overload
    def logits(
        self, sequences: Many, columns: Literal[20, 33] = ..., *, unknown: Unknown = ...,
        upper: bool = ..., strip_stop: bool = ..., truncate: bool = ...,
    ) -> list[Floats]: ...  # fmt: skip

    def logits(
        self, sequences: One | Many, columns: Literal[20, 33] = 20, *, unknown: Unknown = "error",
        upper: bool = False, strip_stop: bool = False, truncate: bool = False,
    ) -> Floats | list[Floats]:  # fmt: skip
        """Natural logarithms of probabilities, as ``esm2-run logits`` writes them.

        ``Model.logits`` gives scores before the softmax, and rows for BOS and EOS.

        Args:
            sequences: as in ``embed``.
            columns: 20 amino acids in the order ``ACDEFGHIKLMNPQRSTVWY``, or all 33 tokens. The
                softmax is over all of them.
            unknown, upper, strip_stop, truncate: as in ``embed``.

        Returns:
            N arrays ``[L, columns]`` float32; of one sequence its array.
        """
        options = _options(unknown, upper, strip_stop, truncate) | {"columns": columns}
        return self._lists("/logits", "log_probabilities", sequences, options, lambda: columns)

    @overload
    def contacts(  # type: ignore[overload-overlap]
        self, sequences: One, *, unknown: Unknown = ..., upper: bool = ..., strip_stop: bool = ...,
        truncate: bool = ...,
    ) -> Floats: ...  # fmt: skip

    @overload
    def contacts(
        self, sequences: Many, *, unknown: Unknown = ..., upper: bool = ..., strip_stop: bool = ...,
        truncate: bool = ...,
    ) -> list[Floats]: ...  # fmt: skip

    def contacts(
        self, sequences: One | Many, *, unknown: Unknown = "error", upper: bool = False,
        strip_stop: bool = False, truncate: bool = False,
    ) -> Floats | list[Floats]:  # fmt: skip
        """Probabilities that residues touch: N arrays ``[L, L]`` float32; of one its array."""
        options = _options(unknown, upper, strip_stop, truncate)
        parts = self._arrays(
            "/contacts", "contacts", sequences, options, lambda tokens: FLOAT_BYTES * tokens**2
        )
        maps: list[Floats] = [
            flat.reshape((round(len(flat) ** 0.5),) * 2)
            for values, offsets in parts
            for flat in np.split(values, offsets[1:-1])
        ]
        return maps[0] if isinstance(sequences, One) else maps

    @overload
    def predict(  # type: ignore[overload-overlap]
        self, sequences: One, *, unknown: Unknown = ..., upper: bool = ..., strip_stop: bool = ...,
        truncate: bool = ...,
    ) -> "Prediction": ...  # fmt: skip

    @overload
    def predict(
        self, sequences: Many, *, unknown: Unknown = ..., upper: bool = ..., strip_stop: bool = ...,
        truncate: bool = ...,
    ) -> "list[Prediction]": ...  # fmt: skip

    def predict(
        self, sequences: One | Many, *, unknown: Unknown = "error", upper: bool = False,
        strip_stop: bool = False, truncate: bool = False,
    ) -> "Prediction | list[Prediction]":  # fmt: skip
        """Labels with probabilities, or values, by the artifact's head: as ``Model.predict``."""
        from runtime.predict.scores import Prediction

        options = _options(unknown, upper, strip_stop, truncate)
        items = proteins_of(sequences)
        body = partial(_with, "inputs", options)
        parts = self._all("/predict", items, body, lambda answer: (json_of(answer), answer.model))
        found = []
        names = iter(items)
        for listed, model in parts:
            info = self._info_of(model)
            for scores in listed:
                of_labels = by_label(scores, info["labels"])
                labels, problem_type = tuple(info["labels"]), info["problem_type"]
                found.append(Prediction(next(names).name, labels, of_labels, problem_type))
        return found[0] if isinstance(sequences, One) else found

    def score(
        self, wild_type: str, variants: Iterable[str] | None = None,
        convention: str = "masked-marginals", *, offset: int = 1,
    ) -> NDArray[np.float64]:  # fmt: skip
        """How likely substitutions are: as ``Model.score``.

        Args:
            wild_type: residues.
            variants: such as ``A12G`` or ``A12G:S45T``; None takes all single substitutions.
            convention: ``"masked-marginals"``, ``"wt-marginals"`` or ``"pseudo-ppl"``.
            offset: number of the first residue.

        Returns:
            ``[N]`` float64 in the order of ``variants``. Of all single ones ``[L, 20]``, columns in
            the order of ``runtime.lm_head.AMINO_ACIDS``, the wild type's own score where nothing
            changes.
        """
        from runtime.variants.of_model import by_residue, deep_scan, wild_type_of

        if isinstance(variants, str):
            raise InputError("variants must be a list of them, got one string. Put it in a list")
        wanted = list(variants) if variants is not None else None
        if wanted is None:
            protein = wild_type_of(wild_type)
            wanted = [record.sequence for record in deep_scan(protein, offset)]
        residues = len(wild_type)

        def runs(variant: str) -> dict[Any, int]:
            if convention == "wt-marginals":
                return {None: residues + 2}
            if convention == "pseudo-ppl":
                return {variant: residues * (residues + 2)}
            return dict.fromkeys((each[:-1] for each in variant.split(":")), residues + 2)

        items = [Item(variant, variant, runs(variant)) for variant in wanted]
        body = {"wild_type": wild_type, "convention": convention, "offset": offset}
        found = self._all(
            "/score", items, partial(_with, "variants", body), lambda a: json_of(a)["scores"]
        )
        values = np.array([score for part in found for score in part], np.float64)
        return values if variants is not None else by_residue(protein, values)

    def perplexity(
        self, sequences: One | Many, *, unknown: Unknown = "error", upper: bool = False,
        strip_stop: bool = False,
    ) -> NDArray[np.float64]:  # fmt: skip
        """Pseudo-perplexities: ``[N]`` float64, also of one sequence; as ``Model.perplexity``."""
        items = [
            Item(each.value, each.name, {each.name: len(each.value) * (len(each.value) + 2)})
            for each in proteins_of(sequences)
        ]
        body = partial(_with, "inputs", _options(unknown, upper, strip_stop, False))
        found = self._all("/perplexity", items, body, lambda a: json_of(a)["perplexities"])
        return np.array([value for part in found for value in part], np.float64)

    def close(self) -> None:
        """Ends the connections; what is on its way is waited for."""
        self._is_closed = True
        self._threads.shutdown(cancel_futures=True)
        self._connection.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # --- requests -------------------------------------------------------------------------------

    def _lists(
        self, path: str, name: str, sequences: One | Many, options: dict[str, Any],
        columns: Callable[[], int],
    ) -> Floats | list[Floats]:  # fmt: skip
        """``[L, columns]`` of each protein."""
        parts = self._arrays(
            path, name, sequences, options, lambda tokens: FLOAT_BYTES * columns() * tokens
        )
        found: list[Floats] = [
            rows for values, offsets in parts for rows in np.split(values, offsets[1:-1])
        ]
        return found[0] if isinstance(sequences, One) else found

    def _arrays(
        self, path: str, name: str, sequences: One | Many, options: dict[str, Any],
        num_bytes: Callable[[int], int],
    ) -> list[tuple[Floats, NDArray[np.int64]]]:  # fmt: skip
        """Values of each request's proteins one after the other, and where each begins."""
        body = partial(_with, "inputs", options)
        read = partial(arrays_of, name=name)
        return self._all(path, proteins_of(sequences), body, read, NPZ, num_bytes)

    def _all(
        self, path: str, items: Sequence[Item], body: Callable[[list[Item]], dict[str, Any]],
        read: Callable[[Answer], T], accept: str = JSON,
        num_bytes: Callable[[int], int] = lambda tokens: 0,
    ) -> list[T]:  # fmt: skip
        """Sends items in parts; what is read of each answer, in order."""
        stop = Event()

        def send(part: list[Item]) -> tuple[T, str]:
            names = [item.name for item in part]
            answer = self._send("POST", path, body(part), accept, names, stop)
            return read(answer), answer.model

        if len(items) <= 1:
            return [send(list(items))[0]] if items else []
        bounds = Bounds.of(self._info or self.info(), self._at_once)
        futures = [self._threads.submit(send, part) for part in parts_of(items, bounds, num_bytes)]
        try:
            done = wait(futures, return_when=FIRST_EXCEPTION).done
            for future in futures:
                if future in done:
                    future.result()
            found = [future.result() for future in futures]
        finally:
            stop.set()
            for future in futures:
                future.cancel()
        if len({model for _, model in found}) > 1:
            raise EngineError(
                "the server has exchanged its artifact between two requests, so that vectors of "
                "two would be mixed. Ask again"
            )
        return [values for values, _ in found]

    def _send(self, *request: Any) -> Answer:
        if self._is_closed:
            raise EngineError("this client is closed: make another")
        return self._connection.send(*request)

    def _width(self) -> int:
        return int((self._info or self.info())["embed_dim"])

    def _info_of(self, model: str) -> dict[str, Any]:
        """Of the artifact that answered."""
        is_known = self._info and self._info["model_sha256"] == model
        return self._info if is_known else self.info()


def _options(unknown: str, upper: bool, strip_stop: bool, truncate: bool) -> dict[str, Any]:
    return {"unknown": unknown, "upper": upper, "strip_stop": strip_stop, "truncate": truncate}


def _with(field: str, options: dict[str, Any], part: list[Item]) -> dict[str, Any]:
    return {field: [item.value for item in part], **options}
