"""Freed memory that goes back to the system."""

from captioning.fast import memory, switch


class Library:
    """Stands in for the C library: counts the calls."""

    calls = 0

    def malloc_trim(self, pad):
        Library.calls += 1


def test_memory_goes_back_where_the_library_can_and_the_switch_is_on(monkeypatch):
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: Library())
    monkeypatch.setattr(switch, "enabled", True)
    memory.return_free_memory()
    monkeypatch.setattr(switch, "enabled", False)
    memory.return_free_memory()
    assert Library.calls == 1


def test_a_library_that_cannot_is_left_alone(monkeypatch):
    monkeypatch.setattr(switch, "enabled", True)
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    memory.return_free_memory()
