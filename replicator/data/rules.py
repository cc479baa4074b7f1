"""What a link does to records on their way, as far as it matters to those who compare its two sides."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from replicator.config.plug_ins import PlugIn
from replicator.data.orders import LaneSpec
from replicator.transforms import PARTS

_FILTERS = frozenset({"drop", "keep", "drop_hops"})
_EDITS = frozenset({"header_add", "header_set", "header_drop", "header_rename", "provenance", "hop"})


class Rules(NamedTuple):
    """By default nothing: what a reader of committed records sees on the source stands on the target as it is."""

    committed: bool = True  # isolation: records of aborted transactions are left out, open ones waited for
    filtered: bool = False  # records may be left out without a trace
    diverted: bool = False  # records may be left out, and are dead letters
    changed: tuple[str, ...] = ()  # what of a record may be another: of key, value, headers and timestamp


AS_IT_IS = Rules()


def rules_of(
    isolation: str,
    recipe: Iterable[tuple[Any, ...]],
    record_faults: str,
    plug_ins: Sequence[PlugIn] = (),
    *,
    prevents_loops: bool = False,
) -> Rules:
    """Of a lane: its isolation, the steps of its recipe (`replicator.config.recipes`), its policy's word on records
    that cannot be copied, what its plug-ins say of themselves, and whether it leaves out, or marks, what other links
    have written."""
    actions = {step[0] for step in recipe} | ({"drop_hops", "hop"} if prevents_loops else set())
    changed = {part for plug_in in plug_ins for part in plug_in.changes}
    if not actions.isdisjoint(_EDITS):
        changed.add("headers")
    return Rules(
        committed=isolation == "read_committed",
        filtered=record_faults == "skip" or not actions.isdisjoint(_FILTERS) or any(each.drops for each in plug_ins),
        diverted="divert" in actions or bool(plug_ins),
        changed=tuple(part for part in PARTS if part in changed),
    )


def rules_of_lane(spec: LaneSpec) -> Rules:
    faults, prevents_loops = spec.policy.record_faults, spec.loops is not None
    return rules_of(spec.isolation, spec.recipe, faults, spec.plug_ins, prevents_loops=prevents_loops)
