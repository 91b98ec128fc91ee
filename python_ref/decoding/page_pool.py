"""Who owns which page: the host's side of paged caches that share their block table."""

from __future__ import annotations


class PagePool:
    """Pages that are free, or owned by one request each. Nothing here touches the device.

    A request is promised all pages that it can ever need before it gets the first: a promise that was given is kept, so
    that no step can run out of pages, whatever is accepted.

    Attributes:
        num_pages: pages of the pool, owned and free.
        page_size: positions of a page.
        free: ids of pages that nobody owns; the last is taken first. Their order is of no consequence.
    """

    def __init__(self, num_pages: int, page_size: int) -> None:
        """Make a pool.

        Raises:
            ValueError: if there is no page.
        """
        if num_pages < 1:
            raise ValueError(f"PagePool: num_pages must be at least 1, got {num_pages}")
        self.num_pages, self.page_size = num_pages, page_size
        self.free = list(range(num_pages - 1, -1, -1))
        self._owned: dict[int, list[int]] = {}
        self._promised: dict[int, int] = {}

    @property
    def unpromised(self) -> int:
        """Pages that no request counts on."""
        return self.num_pages - sum(self._promised.values())

    def count(self, length: int) -> int:
        """Pages of ``length`` positions."""
        return -(-length // self.page_size)

    def pages(self, owner: int) -> tuple[int, ...]:
        """The pages of a request, in the order of the positions."""
        return tuple(self._owned.get(owner, ()))

    def promise(self, owner: int, count: int) -> bool:
        """Promise pages to a new request; False, and nothing changes, if there are not so many."""
        if count > self.unpromised:
            return False
        self._promised[owner], self._owned[owner] = count, []
        return True

    def reserve(self, owner: int, length: int) -> list[tuple[int, int]]:
        """Give a request pages for positions ``0`` to ``length - 1``; those that it has keep their place.

        Returns:
            What is new: the place in its row of the block table, and the page.

        Raises:
            ValueError: if that is more than it was promised.
        """
        pages, need = self._owned[owner], self.count(length)
        if need > self._promised[owner]:
            raise ValueError(f"PagePool.reserve: length must fit {self._promised[owner]} pages, got {length}")
        new = []
        while len(pages) < need:
            pages.append(self.free.pop())
            new.append((len(pages) - 1, pages[-1]))
        return new

    def release(self, owner: int) -> None:
        """Take back all pages of a request, and the promise."""
        self.free += reversed(self._owned.pop(owner))
        del self._promised[owner]

    def grow(self, num_pages: int) -> None:
        """Have ``num_pages`` pages from here on; not fewer than before."""
        self.free = list(range(num_pages - 1, self.num_pages - 1, -1)) + self.free
        self.num_pages = num_pages

    def check(self) -> None:
        """Count all pages.

        Raises:
            RuntimeError: if one is lost, is owned twice, or a request has more than it was promised.
        """
        found = sorted(self.free + [page for pages in self._owned.values() for page in pages])
        if found != list(range(self.num_pages)):
            raise RuntimeError(f"PagePool: {self.num_pages} pages must be free or owned once each, got {found}")
        for owner, pages in self._owned.items():
            if len(pages) > self._promised[owner]:
                raise RuntimeError(f"PagePool: request {owner} must have {self._promised[owner]} pages, got {pages}")
