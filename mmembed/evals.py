"""mteb's tasks on an embedder: `mteb.evaluate(Encoder(embedder), tasks)`, for texts, pictures and both in one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from . import prompts
from .embedder import Embedder
from .errors import InputError, MissingExtra, SpecError
from .images import Image
from .inputs import Text, Thing

try:
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_meta import ModelMeta, ScoringFunction
    from mteb.types import PromptType
except ImportError as error:
    raise MissingExtra("mteb", "evals") from error

if TYPE_CHECKING:
    import numpy as np
    from mteb.abstasks.task_metadata import TaskMetadata
    from numpy.typing import NDArray

COLUMNS = ("image", "text")
"""Of mteb's batches, in the order in which the parts of an item stand."""


class Encoder(AbsEncoder):
    """An embedder as mteb asks for one.

    Queries go by `encode_query`, documents by `encode_document`, and what is neither (sentences that are alike, things that are
    sorted) by the embedder's default prompt. Where a prompt has a place for an instruction, mteb's instruction of the task
    stands there; of such an embedder what is neither goes by the prompt of queries, as its authors measure it.

        import mteb
        from mmembed.evals import Encoder

        mteb.evaluate(Encoder(embedder), mteb.get_tasks(tasks=["STSBenchmark"]))

    mteb fetches the data of its tasks from a hub.

    Args:
        embedder: of one vector an item. truncate_dim: as `Embedder.encode`.
        instructions: other words for a task, by its name, its type, "query" or "document", in the order of mteb's.

    Raises:
        SpecError: an embedder of token vectors or sparse weights alone, or a length that it was not trained for.
    """

    def __init__(
        self, embedder: Embedder, *, truncate_dim: int | None = None, instructions: Mapping[str, str] | None = None
    ):
        spec = embedder.spec
        if spec.dual is None and spec.pooling is None:
            raise SpecError(f"{spec.name!r} has no one vector for an item, which mteb's tasks compare")
        self.model, self.truncate_dim = embedder, truncate_dim
        self.prompts_dict = dict(instructions) if instructions else None
        self.mteb_model_meta = ModelMeta.create_empty(
            {
                "name": f"mmembed/{spec.name.replace('/', '__')}",
                "revision": embedder.fingerprint[:12],
                "max_tokens": spec.max_length,
                "embed_dim": embedder.width(truncate_dim),
                "similarity_fn_name": ScoringFunction.COSINE,
                "modalities": [kind for kind in spec.modalities if kind in COLUMNS],
                "use_instructions": any(_takes_instruction(spec.prompts, name) for name in spec.prompts),
            }
        )

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        **options: Any,
    ) -> NDArray[np.float32]:
        """Vectors (N, D) of what mteb's batches hold; its `batch_size` is that of its reader: ours go by tokens.

        Raises:
            InputError: things of neither text nor picture. Else as `Embedder.encode`.
        """
        embedder: Embedder = self.model
        side = None if prompt_type is None else PromptType(prompt_type).value
        name = embedder.spec.prompt_of("document" if side == "document" else "query")
        if name is not None and _takes_instruction(embedder.spec.prompts, name):
            instruction = self.get_instruction(task_metadata, prompt_type) or None
        else:
            instruction, name = None, name if side is not None else None
        return embedder.encode(
            _things(inputs),
            prompt_name=name,
            instruction=instruction,
            truncate_dim=self.truncate_dim,
            show_progress_bar=bool(options.get("show_progress_bar", False)),
        )


def _takes_instruction(templates: prompts.Templates, name: str) -> bool:
    """Whether a prompt has a place for an instruction."""
    every = [each for given in templates[name].values() for each in ([given] if isinstance(given, str) else given)]
    return any(slot == "instruction" for template in every for _, slot in prompts.pieces(template))


def _things(batches: Iterable[Mapping[str, Any]]) -> Iterator[Thing]:
    for batch in batches:
        columns = [name for name in COLUMNS if name in batch]
        if not columns:
            raise InputError(f"mteb's items hold {', '.join(batch)}, and neither text nor image")
        for parts in zip(*(batch[name] for name in columns), strict=True):
            yield tuple(
                Image(part) if name == "image" else Text(part)
                for name, part in zip(columns, parts, strict=True)
                if part is not None
            )
