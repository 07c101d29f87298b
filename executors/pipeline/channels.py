"""How messages find their receiver, and when things happened: per backend and device.

gloo matches tags, so one group carries everything. NCCL ignores tags and matches the messages of a communicator in
order, and a receive that waits blocks its communicator's stream: there every pair of ranks has one communicator for
activations and one for gradients, and receives are posted in the order in which the other side sends (by sample).
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, Protocol

import torch
import torch.distributed as dist

from executors.pipeline.messages import Message, RankTable

__all__ = ["Channels", "Clock", "Ordered", "Tagged", "clock_of"]


class Channels(Protocol):
    """Sends and receives messages of a kind: activations (F) or gradients (B)."""

    def send(self, m: Message, kind: str, tensor: torch.Tensor) -> Any:
        """Start to send; the tensor must live until the returned work is done."""
        ...

    def receive(self, m: Message, kind: str, buffer: torch.Tensor) -> Any:
        """Post a receive into ``buffer``."""
        ...


def _ends(m: Message, kind: str) -> tuple[int, int]:
    return (m.producer, m.consumer) if kind == "F" else (m.consumer, m.producer)


class Tagged:
    """One group, messages told apart by tags (gloo)."""

    def send(self, m: Message, kind: str, tensor: torch.Tensor) -> Any:
        """See ``Channels``."""
        return dist.isend(tensor, dst=_ends(m, kind)[1], tag=m.tag(kind))

    def receive(self, m: Message, kind: str, buffer: torch.Tensor) -> Any:
        """See ``Channels``."""
        return dist.irecv(buffer, src=_ends(m, kind)[0], tag=m.tag(kind))


class Ordered:
    """A group for every ordered pair of ranks that talk and every kind, messages in order (NCCL).

    Every rank of the world must make it, with the same tables. NCCL makes a communicator at its first message and waits
    for the other side to do so too, so every group sends one message here, in an order that is the same for all.
    """

    def __init__(self, tables: Iterable[RankTable], device: str) -> None:
        pairs = {(*_ends(m, kind), kind) for t in tables for mine in t.produced.values() for m in mine
                 for kind in ("F", "B")}
        self.groups = {(a, b, kind): dist.new_group([a, b]) for a, b, kind in sorted(pairs)}
        first = torch.zeros(1, device=device)
        for (a, b, _), group in self.groups.items():
            if dist.get_rank() == a:
                dist.send(first, dst=b, group=group)
            elif dist.get_rank() == b:
                dist.recv(first, src=a, group=group)

    def send(self, m: Message, kind: str, tensor: torch.Tensor) -> Any:
        """See ``Channels``."""
        sender, receiver = _ends(m, kind)
        return dist.isend(tensor, dst=receiver, group=self.groups[sender, receiver, kind])

    def receive(self, m: Message, kind: str, buffer: torch.Tensor) -> Any:
        """See ``Channels``; of one group, in the order in which they are sent."""
        sender, receiver = _ends(m, kind)
        return dist.irecv(buffer, src=sender, group=self.groups[sender, receiver, kind])


class Clock(Protocol):
    """Marks points in a device's work, and says afterwards when they were, in seconds of the host's clock."""

    def begin(self) -> None:
        """Start of a step."""
        ...

    def mark(self) -> Any:
        """Now, in the order of the current stream's work."""
        ...

    def settled(self, mark: Any) -> float:
        """When a mark was passed; waits for it."""
        ...


class _HostClock:
    def begin(self) -> None:
        """See ``Clock``."""

    def mark(self) -> float:
        """See ``Clock``."""
        return time.perf_counter()

    def settled(self, mark: float) -> float:
        """See ``Clock``."""
        return mark


class _StreamClock:
    """CUDA events against one recorded when the device was idle."""

    def begin(self) -> None:
        """See ``Clock``."""
        torch.cuda.synchronize()
        self.base = self.mark()
        self.base.synchronize()
        self.host = time.perf_counter()

    def mark(self) -> torch.cuda.Event:
        """See ``Clock``."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def settled(self, mark: torch.cuda.Event) -> float:
        """See ``Clock``."""
        mark.synchronize()
        return self.host + float(self.base.elapsed_time(mark)) * 1e-3


def clock_of(device: str) -> Clock:
    """The clock of a device."""
    return _StreamClock() if device.startswith("cuda") else _HostClock()
