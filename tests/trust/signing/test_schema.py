"""Our tables of A2A against the descriptors of the SDK: a newer A2A must be looked at before it is signed."""

from __future__ import annotations

from a2a.types import a2a_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from trust.signing.proto_json import KINDS
from trust.signing.schema import ENUMERATIONS, ONE_OF, SCHEMA

NAMES = {
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_BOOL: "bool",
    FieldDescriptor.TYPE_BYTES: "bytes",
}


def kind_of(field: FieldDescriptor) -> str:
    message, enumeration = field.message_type, field.enum_type
    if message is not None and message.GetOptions().map_entry:
        return kind_of(message.fields_by_name["value"]).rstrip("?!") + "{}" + "!" * is_required(field)
    name = message.name if message else enumeration.name if enumeration else NAMES[field.type]
    many = "[]" * field.is_repeated
    optional = "?" * (message is None and field.has_presence)
    return f"{name}{many}{optional}{'!' * is_required(field)}"


def is_required(field: FieldDescriptor) -> bool:
    return "REQUIRED" in str(field.GetOptions())


def table(descriptor: Descriptor, found: dict[str, dict[str, str]]) -> None:
    """The kinds that this one leads to; signatures are in no form."""
    if descriptor.name in found or descriptor.file.package == "google.protobuf":
        return
    fields = [field for field in descriptor.fields if field.json_name != "signatures"]
    found[descriptor.name] = {field.json_name: kind_of(field) for field in fields}
    for field in fields:
        message = field.message_type
        if message is not None and message.GetOptions().map_entry:
            message = message.fields_by_name["value"].message_type
        if message is not None:
            table(message, found)


def test_the_tables_are_the_sdks() -> None:
    found: dict[str, dict[str, str]] = {}
    for kind in ("AgentCard", *KINDS):
        table(a2a_pb2.DESCRIPTOR.message_types_by_name[kind], found)
    assert found == SCHEMA
    alternatives = {
        kind: frozenset(field.json_name for field in oneof.fields)
        for kind in found
        for oneof in a2a_pb2.DESCRIPTOR.message_types_by_name[kind].oneofs
        if not oneof.name.startswith("_")  # the keyword `optional`
    }
    assert alternatives == ONE_OF
    used = {kind.rstrip("!?[]{}") for members in found.values() for kind in members.values()}
    enumerations = a2a_pb2.DESCRIPTOR.enum_types_by_name
    found_names = {name: tuple(v.name for v in enumerations[name].values) for name in used & set(enumerations)}
    assert found_names == ENUMERATIONS
