"""The bus: NATS and JetStream as Flint uses them. The only room that knows the NATS client."""

from flint_bus.bus import Bus
from flint_bus.consumer import Consumer
from flint_bus.errors import (
    AppendFailed,
    AppendRefused,
    AppendUnknown,
    BusError,
    BusTimeout,
    Disconnected,
    MessageTooLarge,
    NoResponders,
    SequenceMismatch,
    StreamApiError,
    StreamFull,
    StreamLost,
    StreamMissing,
)
from flint_bus.messages import Message, StoredMessage
from flint_bus.pace import Portion
from flint_bus.streams import StreamState
from flint_bus.subjects import JOBS_STREAM, journal_stream
from flint_bus.subscription import Subscription

__all__ = [
    "JOBS_STREAM",
    "AppendFailed",
    "AppendRefused",
    "AppendUnknown",
    "Bus",
    "BusError",
    "BusTimeout",
    "Consumer",
    "Disconnected",
    "Message",
    "MessageTooLarge",
    "NoResponders",
    "Portion",
    "SequenceMismatch",
    "StoredMessage",
    "StreamApiError",
    "StreamFull",
    "StreamLost",
    "StreamMissing",
    "StreamState",
    "Subscription",
    "journal_stream",
]
