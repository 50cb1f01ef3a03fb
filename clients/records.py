"""The client's door between the protocol's messages and Flower's records."""

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedef.messages import PAYLOADS, Reply, Task

STYPE = "fedef/1"


def task_from(content: RecordDict) -> Task:
    """Task of a received message.

    Raises
    ------
    CorruptPayload
        If a field is missing or of another type.
    """
    payloads = {name: array.data for name, array in content.array_records["payloads"].items()}
    absent = dict.fromkeys(PAYLOADS, b"")
    return Task.from_fields({**absent, **content.config_records["fields"], **payloads})


def content_of(reply: Reply) -> RecordDict:
    """Records of a reply: payloads as arrays, which Flower cuts into chunks; the rest as fields."""
    fields = reply.to_fields()
    payloads = {name: fields.pop(name) for name in PAYLOADS & fields.keys()}
    arrays = {
        name: Array(dtype="uint8", shape=(len(data),), stype=STYPE, data=data)
        for name, data in payloads.items()
        if isinstance(data, bytes) and data
    }
    return RecordDict({"fields": ConfigRecord(dict(fields)), "payloads": ArrayRecord(arrays)})
