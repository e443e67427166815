from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DescribeRequest(_message.Message):
    __slots__ = ("protocol", "check")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    CHECK_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    check: int
    def __init__(self, protocol: _Optional[int] = ..., check: _Optional[int] = ...) -> None: ...

class DescribeReply(_message.Message):
    __slots__ = ("protocol", "version", "bundles", "check")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    BUNDLES_FIELD_NUMBER: _ClassVar[int]
    CHECK_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    version: str
    bundles: _containers.RepeatedCompositeFieldContainer[Bundle]
    check: int
    def __init__(self, protocol: _Optional[int] = ..., version: _Optional[str] = ..., bundles: _Optional[_Iterable[_Union[Bundle, _Mapping]]] = ..., check: _Optional[int] = ...) -> None: ...

class Bundle(_message.Message):
    __slots__ = ("name", "fingerprint", "header", "files", "digest")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    HEADER_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    name: str
    fingerprint: str
    header: str
    files: _containers.RepeatedCompositeFieldContainer[File]
    digest: str
    def __init__(self, name: _Optional[str] = ..., fingerprint: _Optional[str] = ..., header: _Optional[str] = ..., files: _Optional[_Iterable[_Union[File, _Mapping]]] = ..., digest: _Optional[str] = ...) -> None: ...

class File(_message.Message):
    __slots__ = ("path", "size", "sha256")
    PATH_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    path: str
    size: int
    sha256: str
    def __init__(self, path: _Optional[str] = ..., size: _Optional[int] = ..., sha256: _Optional[str] = ...) -> None: ...

class OpenRequest(_message.Message):
    __slots__ = ("protocol", "bundle", "fingerprint", "check")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    CHECK_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    bundle: str
    fingerprint: str
    check: int
    def __init__(self, protocol: _Optional[int] = ..., bundle: _Optional[str] = ..., fingerprint: _Optional[str] = ..., check: _Optional[int] = ...) -> None: ...

class OpenReply(_message.Message):
    __slots__ = ("session", "session_ttl_s", "batch_ttl_s", "most_batches", "message_bytes", "rows_port", "rows_ticket", "server", "check")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    SESSION_TTL_S_FIELD_NUMBER: _ClassVar[int]
    BATCH_TTL_S_FIELD_NUMBER: _ClassVar[int]
    MOST_BATCHES_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    ROWS_PORT_FIELD_NUMBER: _ClassVar[int]
    ROWS_TICKET_FIELD_NUMBER: _ClassVar[int]
    SERVER_FIELD_NUMBER: _ClassVar[int]
    CHECK_FIELD_NUMBER: _ClassVar[int]
    session: str
    session_ttl_s: int
    batch_ttl_s: int
    most_batches: int
    message_bytes: int
    rows_port: int
    rows_ticket: str
    server: str
    check: int
    def __init__(self, session: _Optional[str] = ..., session_ttl_s: _Optional[int] = ..., batch_ttl_s: _Optional[int] = ..., most_batches: _Optional[int] = ..., message_bytes: _Optional[int] = ..., rows_port: _Optional[int] = ..., rows_ticket: _Optional[str] = ..., server: _Optional[str] = ..., check: _Optional[int] = ...) -> None: ...

class PrepareRequest(_message.Message):
    __slots__ = ("header", "batch", "check")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    CHECK_FIELD_NUMBER: _ClassVar[int]
    header: PrepareHeader
    batch: PrepareBatch
    check: int
    def __init__(self, header: _Optional[_Union[PrepareHeader, _Mapping]] = ..., batch: _Optional[_Union[PrepareBatch, _Mapping]] = ..., check: _Optional[int] = ...) -> None: ...

class PrepareHeader(_message.Message):
    __slots__ = ("session", "batches", "segments")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    BATCHES_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    session: str
    batches: int
    segments: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, session: _Optional[str] = ..., batches: _Optional[int] = ..., segments: _Optional[_Iterable[str]] = ...) -> None: ...

class PrepareBatch(_message.Message):
    __slots__ = ("number", "data")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    number: int
    data: bytes
    def __init__(self, number: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class PrepareReply(_message.Message):
    __slots__ = ("batches", "check")
    BATCHES_FIELD_NUMBER: _ClassVar[int]
    CHECK_FIELD_NUMBER: _ClassVar[int]
    batches: int
    check: int
    def __init__(self, batches: _Optional[int] = ..., check: _Optional[int] = ...) -> None: ...

class EvaluateRequest(_message.Message):
    __slots__ = ("session", "sequence", "group", "spans", "release", "rows", "slots", "check")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    SPANS_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    CHECK_FIELD_NUMBER: _ClassVar[int]
    session: str
    sequence: int
    group: int
    spans: _containers.RepeatedScalarFieldContainer[int]
    release: _containers.RepeatedScalarFieldContainer[int]
    rows: bytes
    slots: int
    check: int
    def __init__(self, session: _Optional[str] = ..., sequence: _Optional[int] = ..., group: _Optional[int] = ..., spans: _Optional[_Iterable[int]] = ..., release: _Optional[_Iterable[int]] = ..., rows: _Optional[bytes] = ..., slots: _Optional[int] = ..., check: _Optional[int] = ...) -> None: ...

class EvaluateReply(_message.Message):
    __slots__ = ("sequence", "rows", "error", "details", "check")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    CHECK_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    rows: bytes
    error: str
    details: str
    check: int
    def __init__(self, sequence: _Optional[int] = ..., rows: _Optional[bytes] = ..., error: _Optional[str] = ..., details: _Optional[str] = ..., check: _Optional[int] = ...) -> None: ...

class LaneHello(_message.Message):
    __slots__ = ("protocol", "session", "ticket", "check")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    CHECK_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    session: str
    ticket: str
    check: int
    def __init__(self, protocol: _Optional[int] = ..., session: _Optional[str] = ..., ticket: _Optional[str] = ..., check: _Optional[int] = ...) -> None: ...

class CloseRequest(_message.Message):
    __slots__ = ("session", "check")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    CHECK_FIELD_NUMBER: _ClassVar[int]
    session: str
    check: int
    def __init__(self, session: _Optional[str] = ..., check: _Optional[int] = ...) -> None: ...

class CloseReply(_message.Message):
    __slots__ = ("check",)
    CHECK_FIELD_NUMBER: _ClassVar[int]
    check: int
    def __init__(self, check: _Optional[int] = ...) -> None: ...

class FetchRequest(_message.Message):
    __slots__ = ("bundle", "path", "check")
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    CHECK_FIELD_NUMBER: _ClassVar[int]
    bundle: str
    path: str
    check: int
    def __init__(self, bundle: _Optional[str] = ..., path: _Optional[str] = ..., check: _Optional[int] = ...) -> None: ...

class FetchReply(_message.Message):
    __slots__ = ("data", "check")
    DATA_FIELD_NUMBER: _ClassVar[int]
    CHECK_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    check: int
    def __init__(self, data: _Optional[bytes] = ..., check: _Optional[int] = ...) -> None: ...
