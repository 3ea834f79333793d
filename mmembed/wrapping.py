"""The prompt of one call: a spec's template, words or an instruction of the caller's own, put around each item."""

from __future__ import annotations

from collections.abc import Sequence

from . import prompts
from .errors import SpecError, UnknownName
from .inputs import Item, modality
from .spec import ModelSpec


class Wrapping:
    """The prompt of one call, put around each item."""

    def __init__(
        self,
        spec: ModelSpec,
        name: str | None,
        prompt: str | Sequence[str] | None,
        instruction: str | Sequence[str] | None,
        language: str | None,
        joint: str = " ",
    ):
        if prompt is not None and name is not None:
            raise SpecError("give prompt or prompt_name, not both")
        self.spec, self.language = spec, language
        self.name = spec.default_prompt_name if name is None and prompt is None else name
        if self.name is not None and self.name not in spec.prompts:
            raise UnknownName("prompt", self.name, spec.prompts)
        self.prompt, self.instruction, self.joint = prompt, instruction, joint
        self._templates: dict[tuple[str, bool], tuple[str, ...]] = {}  # of a kind of item

    def __call__(self, item: Item, row: int) -> list[list[prompts.Run]]:
        """The item in each of its templates, mostly one."""
        own = _of_row(self.prompt, row, "prompts")
        if own is not None:
            templates: tuple[str, ...] = (prompts.literal(own),)
        else:
            templates = self._templates_for(item)
        instruction = (
            _of_row(self.instruction, row, "instructions") or None
        )  # as authors' code has it, no words are none
        if instruction is not None and not any(
            slot == "instruction" for template in templates for _, slot in prompts.pieces(template)
        ):
            said = "words given as prompt have" if own is not None else f"the prompt {self.name!r} has"
            raise SpecError(
                f"{said} no place for an instruction; pass prompt='...' with all that is to be said instead"
            )
        if instruction is None and self.name is not None:
            instruction = self.spec.instructions.get(self.name)
        if instruction is not None and self.spec.instruction_cleaning is not None:
            instruction = prompts.CLEANINGS[self.spec.instruction_cleaning](instruction)
        spec = self.spec
        return [prompts.wrap(item, each, instruction, spec.cleaning, self.joint, spec.apart) for each in templates]

    def _templates_for(self, item: Item) -> tuple[str, ...]:
        kind = modality(item), prompts.is_empty(item)
        if kind not in self._templates:
            self._templates[kind] = prompts.templates_for(self.spec.prompts, self.name, item, self.language)
        return self._templates[kind]

    def under(self, name: str, item: Item) -> list[prompts.Run]:
        """The item in the one template of the prompt `name`."""
        template = prompts.templates_for(self.spec.prompts, name, item, self.language)[0]
        return prompts.wrap(
            item, template, self.spec.instructions.get(name), self.spec.cleaning, self.joint, self.spec.apart
        )

    def check_count(self, items: int) -> None:
        for given, what in ((self.prompt, "prompts"), (self.instruction, "instructions")):
            if given is not None and not isinstance(given, str) and len(given) != items:
                raise SpecError(f"{len(given)} {what} were given for {items} items")


def _of_row(given: str | Sequence[str] | None, row: int, what: str) -> str | None:
    if given is None:
        return None
    if not isinstance(given, str) and row >= len(given):
        raise SpecError(f"{len(given)} {what} were given, and there are more items")
    own = given if isinstance(given, str) else given[row]
    if not isinstance(own, str):
        raise SpecError(f"{what} are texts, and that of row {row} is a {type(own).__name__}")
    prompts.check_text(own)
    return own
