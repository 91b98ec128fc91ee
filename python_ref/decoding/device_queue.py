"""Work of the device in order, behind the back of the host: a stream of a GPU, or one thread on the CPU.

The host puts a task into the queue and goes on. Tasks run one after the other. On a GPU a task launches kernels on the
stream of the queue, which takes no longer than that; on the CPU a worker thread runs it, and the ops that it calls let
go of the interpreter while they compute.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Task = Callable[[], object]


class Ticket:
    """A task in the queue; it says when that, and all before it, has ended."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self._run = threading.Event()
        self._event: Any = None

    @property
    def done(self) -> bool:
        """Whether the device has ended the task; does not wait."""
        return self._run.is_set() and (self._event is None or self._event.query())

    def wait(self) -> None:
        """Wait until the device has ended the task.

        Raises:
            BaseException: what the task raised, or an earlier one, for which it was not run.
        """
        self._run.wait()
        if self.error is not None:
            raise self.error
        if self._event is not None:
            self._event.synchronize()


class DeviceQueue:
    """Tasks of one device.

    After a task that raised no other is run until :meth:`recover`: they would build on what is not there.

    Attributes:
        device: where the tasks compute.
        stream: ``torch.cuda.Stream`` of the tasks; None on the CPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._failure: list[BaseException] = []
        self._tasks: queue.SimpleQueue[Any] | None = None

    def submit(self, task: Task) -> Ticket:
        """Put a task behind all others, and go on at once."""
        ticket = Ticket()
        if self.stream is not None:
            with self.context():
                _run(task, ticket, self._failure)
                ticket._event = torch.cuda.Event()
                ticket._event.record(self.stream)
            ticket._run.set()
            return ticket
        if self._tasks is None:
            self._tasks = queue.SimpleQueue()
            # The thread knows the list of tasks but not this object, and ends with it.
            thread = threading.Thread(target=_work, args=(self._tasks, self._failure), daemon=True)
            thread.start()
            weakref.finalize(self, _end, self._tasks, thread)
        self._tasks.put((task, ticket, torch.get_num_threads()))
        return ticket

    def recover(self) -> None:
        """Take tasks again after one has raised; all that are in the queue must have ended."""
        self._failure.clear()

    def follow(self) -> None:
        """Let the next tasks see what the caller's own stream has computed so far; nobody waits on the host."""
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream(self.device))

    @contextlib.contextmanager
    def context(self) -> Any:
        """What a task sees: no gradients, and on a GPU the stream, so that memory belongs to it."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            if self.stream is not None:
                stack.enter_context(torch.cuda.stream(self.stream))
            yield

    def upload(self, values: Sequence[Any], dtype: torch.dtype = torch.int64) -> Tensor:
        """A tensor of numbers of the host, within a task; through pinned memory, so that nobody waits."""
        if self.stream is None:
            return torch.tensor(values, dtype=dtype)
        # The allocator of pinned memory gives it to nobody else before the copy has ended.
        return torch.tensor(values, dtype=dtype, pin_memory=True).to(self.device, non_blocking=True)


def _end(tasks: queue.SimpleQueue[Any], thread: threading.Thread) -> None:
    """Let the worker thread end, also where the interpreter does: it must not be within an op then."""
    tasks.put(None)
    if thread is not threading.current_thread():
        thread.join()


def _run(task: Task, ticket: Ticket, failure: list[BaseException]) -> None:
    if not failure:
        try:
            task()
        except BaseException as error:  # raised again where somebody waits
            failure.append(error)
    ticket.error = failure[0] if failure else None


def _work(tasks: queue.SimpleQueue[Any], failure: list[BaseException]) -> None:
    """The worker thread of a CPU."""
    known = 0
    with torch.inference_mode():
        while (item := tasks.get()) is not None:
            task, ticket, threads = item
            if threads != known:  # a setting of the calling thread that a new one does not have
                torch.set_num_threads(threads)
                known = threads
            _run(task, ticket, failure)
            ticket._run.set()
            del item, task, ticket  # or what they refer to would live until the next one
