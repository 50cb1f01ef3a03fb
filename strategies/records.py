"""The server's door between the protocol's messages and Flower's records."""

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedef.errors import CorruptPayload
from fedef.messages import PAYLOADS, Reply, Task

STYPE = "fedef/1"


def content_of(task: Task) -> RecordDict:
    """Records of a task: payloads as arrays, which Flower cuts into chunks; the rest as fields."""
    fields = task.to_fields()
    payloads = {name: fields.pop(name) for name in PAYLOADS & fields.keys()}
    arrays = {
        name: Array(dtype="uint8", shape=(len(data),), stype=STYPE, data=data)
        for name, data in payloads.items()
        if isinstance(data, bytes) and data
    }
    return RecordDict({"fields": ConfigRecord(dict(fields)), "payloads": ArrayRecord(arrays)})


def reply_from(content: RecordDict) -> Reply:
    """Reply in a received message, which nobody vouches for.

    Raises
    ------
    CorruptPayload
        If a record or a field is missing or of another type.
    """
    try:
        payloads = {name: array.data for name, array in content.array_records["payloads"].items()}
        fields = content.config_records["fields"]
    except KeyError as error:
        raise CorruptPayload(f"reply: record {error} is missing") from None
    absent = dict.fromkeys(PAYLOADS, b"")
    return Reply.from_fields({**absent, **fields, **payloads})
