"""Messages from one rank to others that come without a collective, through the store where the ranks met.

A collective needs all of its ranks at one time. A rank that generates cannot say when a response will end, so it leaves
the response in a box, and the ranks that need it take it from there. The store is a server in the process of rank 0 (or
of torchrun); it holds the messages in host memory until they are removed.
"""

from datetime import timedelta

import torch.distributed as dist

from r1zero.distributed import world


class Mailbox:
    """One rank's connection. It is separate from that of torch.distributed, which must not wait for a message."""

    def __init__(self, timeout_s: int):
        host, port, attempt = world.rendezvous()
        server = dist.TCPStore(
            host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=timeout_s)
        )
        self._store = dist.PrefixStore(f"attempt_{attempt}/mailbox", server)

    def send(self, box: str, message: bytes) -> None:
        """Add a message to a box, behind those that any rank has sent to it before.

        message: at most 8 MiB, which is the limit of torch's store.
        """
        number = self._store.add(box, 1) - 1
        self._store.set(f"{box}/{number}", message)  # type: ignore[arg-type]  # bytes are accepted, and `get` returns them

    def receive(self, box: str, number: int) -> bytes:
        """Returns message `number` of a box, 0 being the first that was sent. Waits until it is there.

        Raises torch.distributed.DistStoreError after timeout_s.
        """
        name = f"{box}/{number}"
        self._store.wait([name])  # the watchdog sees a call of wait(), so this rank is not blamed for the delay
        return self._store.get(name)

    def remove(self, box: str, count: int) -> None:
        """Free the memory of a box with `count` messages, when nobody will read it any more."""
        for number in range(count):
            self._store.delete_key(f"{box}/{number}")
        self._store.delete_key(box)
