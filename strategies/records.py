"""The server's door between the protocol's messages and Flower's records."""

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedef.errors import CorruptPayload
from fedef.messages import Reply, Task

STYPE = "fedef/1"


def content_of(task: Task) -> RecordDict:
    """Records of a task: payloads as arrays, which Flower cuts into chunks; the rest as fields."""
    fields, payloads = task.to_parts()
    arrays = {
        name: Array(dtype="uint8", shape=(len(data),), stype=STYPE, data=data)
        for name, data in payloads.items()
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
        arrays, fields = content.array_records["payloads"], content.config_records["fields"]
    except KeyError as error:
        raise CorruptPayload(f"reply: record {error} is missing") from None
    return Reply.from_parts(fields, {name: array.data for name, array in arrays.items()})
