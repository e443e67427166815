"""What is known of a hybrid model once it is compiled."""

from __future__ import annotations

from veil.bundle.manifest import Manifest
from veil.crypto.hint import hint_bytes
from veil.errors import NotCompiled
from veil.hybrid.calls import ModelCalls
from veil.hybrid.sides import Sides
from veil.params import Params


class CompiledFacts:
    """The part of `HybridFHEModel` that tells of what was compiled; `NotCompiled` before."""

    _calls: ModelCalls

    @property
    def sides(self) -> Sides:
        """What this process holds of the client's and the server's half; for tools that look inside."""
        if self._calls.sides is None:
            raise NotCompiled("the model is not compiled; call compile_model first")
        return self._calls.sides

    @property
    def params(self) -> Params:
        """The parameter set in use."""
        return self.sides.compiled.params

    @property
    def manifest(self) -> Manifest:
        """Groups, slots and segments of the compiled model."""
        return self.sides.compiled.manifest

    @property
    def fingerprint(self) -> str:
        """What tells this compiled model from others: its parameters, public seed and layers, as hexadecimal SHA-256."""
        from veil.bundle.fingerprint import fingerprint_of

        compiled = self.sides.compiled
        return fingerprint_of(compiled.params, compiled.seed, compiled.manifest)

    @property
    def unfused(self) -> tuple[str, ...]:
        """Why norms were not fused that `compile_model` was asked to fuse; empty for a bundle from disk."""
        return self.sides.compiled.unfused

    @property
    def is_trainable(self) -> bool:
        """Whether it was compiled for training."""
        return bool(self.manifest.back)

    @property
    def is_fused(self) -> bool:
        """Whether it was compiled with fused norms."""
        return any(group.fusion is not None for group in self.manifest.groups)

    @property
    def hint_bytes(self) -> int:
        """Memory that the server side needs for its hint, known before it is built."""
        return hint_bytes(self.params, list(self.manifest.segments.values()))
