"""The client's door between the protocol's messages and Flower's records."""

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedef.messages import Reply, Task

STYPE = "fedef/1"


def task_from(content: RecordDict) -> Task:
    """Task of a received message.

    Raises
    ------
    CorruptPayload
        If a field is missing or of another type.
    """
    arrays = content.array_records["payloads"]
    payloads = {name: array.data for name, array in arrays.items()}
    return Task.from_parts(content.config_records["fields"], payloads)


def content_of(reply: Reply) -> RecordDict:
    """Records of a reply: payloads as arrays, which Flower cuts into chunks; the rest as fields."""
    fields, payloads = reply.to_parts()
    arrays = {
        name: Array(dtype="uint8", shape=(len(data),), stype=STYPE, data=data)
        for name, data in payloads.items()
    }
    return RecordDict({"fields": ConfigRecord(dict(fields)), "payloads": ArrayRecord(arrays)})
