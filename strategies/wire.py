"""How many bytes Flower's own serialization adds around our payloads."""

from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.app.message.arraychunk import ArrayChunk
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects


def envelope_bytes(message: Message) -> int:
    """Bytes of a message as Flower sends it to a SuperNode, less the arrays' data.

    Flower sends a message as a tree of separately serialized objects; this is their length. In
    the simulation Ray carries the message instead, so there the figure is what a deployment
    would send. HTTP/2, TLS and gRPC framing are not in it.
    """
    if message.has_error():
        return 0
    objects = get_all_nested_objects(_unhashed(message)).values()
    chunks = sum(len(item.data) for item in objects if isinstance(item, ArrayChunk))
    return sum(len(item.deflate()) for item in objects) - chunks


def _unhashed(message: Message) -> Message:
    """Return a copy that shares the data: hashing an Array makes it impossible to pickle."""
    content = RecordDict()
    for name, record in message.content.items():
        copy = record
        if isinstance(record, ArrayRecord):
            copy = ArrayRecord(
                {
                    key: Array(dtype=a.dtype, shape=a.shape, stype=a.stype, data=a.data)
                    for key, a in record.items()
                }
            )
        content[name] = copy
    copied: Message = Message(content, metadata=message.metadata)  # type: ignore[call-overload]  # known to Flower at run time, not listed in its overloads
    return copied
