"""The Python client: connect, send, iterate over events; reconnects and retries are its own business.

async with connect("ws://127.0.0.1:8480", token=token) as client:
    async for event in client.events():
        if isinstance(event, MessageReceived):
            await client.send(event.conversation_id, event.body)
"""

from protocol.client.client import Client, connect
from protocol.client.commands import Page
from protocol.client.errors import (
    ClientClosed,
    ClientError,
    NotReachable,
    Refused,
    Replaced,
    RequestTimeout,
    SendExpired,
    SendQueueFull,
    SendRefused,
    StateFileError,
    TokenRefused,
)
from protocol.client.events import (
    ConversationCreated,
    ConversationLeft,
    ConversationRenamed,
    EntryEvent,
    Event,
    MembersAdded,
    MembersRemoved,
    MessageNotSent,
    MessageReceived,
    MessageSent,
    OtherEntry,
    PresenceChanged,
    ReceiptChanged,
    Resumed,
    StateChanged,
    TypingChanged,
)
from protocol.client.send_queue import Outgoing, Sent
from protocol.client.states import Closed, Connecting, Online, State, Waiting
from protocol.client.tokens import TokenProvider
from protocol.client.wire import Address, StreamOpener

__all__ = [
    "Address", "Client", "ClientClosed", "ClientError", "Closed", "Connecting", "ConversationCreated",
    "ConversationLeft", "ConversationRenamed", "EntryEvent", "Event", "MembersAdded", "MembersRemoved",
    "MessageNotSent", "MessageReceived", "MessageSent", "NotReachable", "Online", "OtherEntry", "Outgoing", "Page",
    "PresenceChanged", "ReceiptChanged", "Refused", "Replaced", "RequestTimeout", "Resumed", "SendExpired",
    "SendQueueFull", "SendRefused", "Sent", "State", "StateChanged", "StateFileError", "StreamOpener",
    "TokenProvider", "TokenRefused", "TypingChanged", "Waiting", "connect",
]  # fmt: skip
