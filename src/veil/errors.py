"""Every error that veil raises on purpose.

::

    VeilError
    ├── ParameterError            a parameter set that cannot work
    │   └── InsecureParameters    a parameter set that works but is too weak to use
    ├── WireError                 bytes from the other side that are not what the protocol allows
    │   ├── CorruptMessage        a message whose checksum does not fit: damaged on the way
    │   ├── UnknownSession        the server does not (or no longer) know the session
    │   └── UnknownBatch          a batch of rows that is not prepared, or belongs to somebody else
    ├── ServerUnreachable         no answer from the server within the time allowed, after the retries allowed
    ├── AccessDenied              the server wants a token, or does not accept the one it got
    ├── IncompatibleServer        another protocol version, or something that is not a veil server
    ├── RowReused                 a second use of a row of a batch, on either side
    ├── WrongAnswer               a server's answer that is not that of the weights it claims to have
    ├── Unchecked                 answers have to be checked, and there is nothing to check them against
    ├── HalfDiffers               a client half that is not of the model that its user trusts
    ├── QuotaExceeded             a limit of the server or of the client's memory
    ├── BundleError               a bundle on disk that is damaged, incomplete or of another version
    ├── ModelSourceError          a model that cannot be found or read
    ├── NotCompiled               a mode that needs ``compile_model`` first
    ├── ModelChanged              a model that is not, or not used as, what was compiled
    ├── StreamChanged             a fused model whose residual stream is not what it was compiled for
    ├── RemoteWeightError         something that needs, or would change, a weight that only the server has
    ├── UnevenTraffic             a model whose questions to the server depend on the text
    ├── NotFiniteActivation       NaN or infinity reached a remote layer; generation stops on the client
    └── DeviceUnavailable         a device that was asked for and is not there

Input that is wrong in the ordinary Python sense (an unknown module name, a value of the wrong type) raises ``ValueError``
or ``TypeError``; ``ParameterError`` and ``BundleError`` are ``ValueError`` as well.
"""

from __future__ import annotations


class VeilError(Exception):
    """Base of every error that veil raises on purpose."""


class ParameterError(VeilError, ValueError):
    """A parameter set that cannot work."""


class InsecureParameters(ParameterError):
    """A parameter set that works but is too weak to use."""


class WireError(VeilError):
    """Bytes from the other side that are not what the protocol allows."""


class CorruptMessage(WireError):
    """A message whose checksum does not fit: damaged on the way."""


class UnknownSession(WireError):
    """The server does not (or no longer) know the session."""


class RemoteWeightError(VeilError):
    """Something that needs, or would change, a weight that only the server has."""


class UnknownBatch(WireError):
    """A batch of rows that is not prepared, or belongs to another session."""


class ServerUnreachable(VeilError, ConnectionError):
    """No answer from the server within the time allowed, after the retries allowed."""


class AccessDenied(VeilError, PermissionError):
    """The server wants a token, or does not accept the one it got."""


class IncompatibleServer(VeilError):
    """Another protocol version, or something that is not a veil server."""


class RowReused(VeilError):
    """A second use of a row of a batch."""


class WrongAnswer(VeilError):
    """A server's answer that is not that of the weights it claims to have; it is not asked again."""


class Unchecked(VeilError):
    """Answers have to be checked, and there is nothing to check them against."""


class HalfDiffers(VeilError):
    """A client half that is not of the model that its user trusts."""


class QuotaExceeded(VeilError):
    """A limit of the server or of the client's memory was reached."""


class BundleError(VeilError, ValueError):
    """A bundle on disk that is damaged, incomplete or of another version."""


class ModelSourceError(VeilError):
    """A model that cannot be found or read."""


class NotCompiled(VeilError, RuntimeError):
    """A mode that needs ``compile_model`` first."""


class ModelChanged(VeilError, ValueError):
    """A model that is not, or not used as, what was compiled: changed weights, or remote layers that were gone around."""


class StreamChanged(VeilError, RuntimeError):
    """A fused model whose residual stream is not the sum that its bundle was compiled for."""


class UnevenTraffic(VeilError, RuntimeError):
    """What a model asks the server depends on the text, which the user did not allow."""


class NotFiniteActivation(VeilError, ValueError):
    """NaN or infinity reached a remote layer."""


class DeviceUnavailable(VeilError, RuntimeError):
    """A device that was asked for and is not there."""


def one_line(error: BaseException, limit: int = 160) -> str:
    """An exception's kind and message on one line of bounded length."""
    text = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(":")
    return text if len(text) <= limit else text[: limit - 1] + "…"
