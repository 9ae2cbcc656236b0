from __future__ import annotations

import errno
import logging
import threading

import pytest

from transfuse.fs.nodes import HandleTable, NodeTable


@pytest.fixture
def table():
    return NodeTable("root")


def test_root_is_node_1(table):
    assert table.get(1) == "root" and table.find("root") == 1


def test_a_new_object_gets_the_next_number_from_2(table):
    assert table.remember("a")[0] == 2 and table.remember("b")[0] == 3


def test_the_same_object_is_the_same_node(table):
    assert table.remember("a") == table.remember("a") and table.nlookup(2) == 2


def test_unknown_nodeid_is_estale(table):
    with pytest.raises(OSError) as caught:
        table.get(99)
    assert caught.value.errno == errno.ESTALE


def test_the_last_forget_gives_the_object_up(table):
    table.remember("a")
    table.remember("a")
    assert (table.forget(2, 1), table.forget(2, 1)) == (None, "a")
    assert 2 not in table and table.find("a") is None


def test_forget_of_more_than_was_given_is_clamped_and_reported(table, caplog):
    table.remember("a")
    with caplog.at_level(logging.WARNING):
        assert table.forget(2, 5) == "a"
    assert "5 lookups of nodeid 2, which has 1" in caplog.text


def test_forget_of_unknown_nodeid_is_reported(table, caplog):
    with caplog.at_level(logging.WARNING):
        assert table.forget(7, 1) is None
    assert "unknown nodeid 7" in caplog.text


def test_the_root_is_never_forgotten(table):
    assert table.forget(1, 1) is None and table.forget(1, 1) is None and table.get(1) == "root"


def test_a_number_is_not_used_again(table):
    table.remember("a")
    table.forget(2, 1)
    assert table.remember("b")[0] == 3


def test_a_given_number_that_comes_back_has_another_generation(table):
    first = table.remember("a", nodeid=500)
    table.forget(500, 1)
    second = table.remember("b", nodeid=500)
    assert first[0] == second[0] == 500 and first[1] != second[1]


def test_a_given_number_that_is_taken_is_eexist(table):
    table.remember("a", nodeid=500)
    with pytest.raises(FileExistsError):
        table.remember("b", nodeid=500)


def test_counting_steps_over_given_numbers(table):
    table.remember("a", nodeid=2)
    assert table.remember("b")[0] == 3


def test_a_full_table_is_enfile():
    table = NodeTable("root", max_nodes=2)
    table.remember("a")
    with pytest.raises(OSError) as caught:
        table.remember("b")
    assert caught.value.errno == errno.ENFILE


def test_forget_all_leaves_the_root(table):
    table.remember("a")
    table.remember("b")
    assert sorted(table.forget_all()) == ["a", "b"] and len(table) == 1 and table.get(1) == "root"


def test_threads_count_every_lookup(table):
    def work():
        for _ in range(500):
            table.remember("shared")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert table.nlookup(2) == 2000


def test_handles_start_at_1_and_are_not_used_again():
    handles = HandleTable()
    assert handles.add("a") == 1
    handles.remove(1)
    assert handles.add("b") == 2


@pytest.mark.parametrize("use", ["get", "remove"])
def test_unknown_handle_is_ebadf(use):
    with pytest.raises(OSError) as caught:
        getattr(HandleTable(), use)(1)
    assert caught.value.errno == errno.EBADF


def test_too_many_handles_are_enfile():
    handles = HandleTable(max_handles=1)
    handles.add("a")
    with pytest.raises(OSError) as caught:
        handles.add("b")
    assert caught.value.errno == errno.ENFILE


def test_clear_returns_what_was_open():
    handles = HandleTable()
    handles.add("a")
    handles.add("b")
    assert (list(handles), handles.clear(), len(handles)) == (["a", "b"], ["a", "b"], 0)
