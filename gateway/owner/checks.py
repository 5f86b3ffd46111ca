"""What a message must look like to be appended."""

from gateway.refusals import body_empty, too_long
from protocol import limits
from protocol.frames import Metadata, Send


def check_message(command: Send) -> None:
    """Raises Refused for a body or metadata outside of the protocol's limits."""
    length = len(command.body)
    if not length:
        raise body_empty()
    if length > limits.BODY_CHARS_MAX:
        raise too_long("the body", length, limits.BODY_CHARS_MAX, "characters")
    if command.metadata:
        _check_metadata(command.metadata)


def _check_metadata(metadata: Metadata) -> None:
    if len(metadata) > limits.METADATA_KEYS_MAX:
        raise too_long("metadata", len(metadata), limits.METADATA_KEYS_MAX, "keys")
    for key, value in metadata.items():
        if len(key) > limits.METADATA_KEY_CHARS_MAX:
            raise too_long("a key of metadata", len(key), limits.METADATA_KEY_CHARS_MAX, "characters")
        if len(value) > limits.METADATA_VALUE_CHARS_MAX:
            raise too_long(
                f"the value of metadata key {key!r}", len(value), limits.METADATA_VALUE_CHARS_MAX, "characters"
            )
