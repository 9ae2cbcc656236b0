from __future__ import annotations

import errno
import logging

import pytest

from transfuse.fs.path_nodes import PathNodes


@pytest.fixture
def nodes():
    return PathNodes()


def test_a_path_is_the_names_from_the_root(nodes):
    d = nodes.remember(nodes.root, "d", 0, True)
    f = nodes.remember(d, "f", 0, False)
    assert (nodes.path(nodes.root), nodes.path(d), nodes.path(f)) == ("/", "/d", "/d/f")


def test_files_with_the_same_number_are_one_node(nodes):
    assert nodes.remember(nodes.root, "a", 7, False) is nodes.remember(nodes.root, "b", 7, False)


def test_files_without_a_number_are_nodes_of_their_own(nodes):
    assert nodes.remember(nodes.root, "a", 0, False) is not nodes.remember(nodes.root, "b", 0, False)


def test_directories_with_the_same_number_stay_apart(nodes):
    assert nodes.remember(nodes.root, "a", 7, True) is not nodes.remember(nodes.root, "b", 7, True)


def test_a_name_that_has_another_number_now_is_another_node(nodes):
    first = nodes.remember(nodes.root, "a", 7, False)
    assert nodes.remember(nodes.root, "a", 8, False) is not first and nodes.path(first) is None


def test_a_name_that_is_of_another_kind_now_is_another_node(nodes):
    first = nodes.remember(nodes.root, "a", 0, False)
    assert nodes.remember(nodes.root, "a", 0, True) is not first


def test_a_rename_takes_everything_below_along(nodes):
    d = nodes.remember(nodes.root, "d", 0, True)
    f = nodes.remember(nodes.remember(d, "e", 0, True), "f", 0, False)
    nodes.move(nodes.root, "d", nodes.root, "new")
    assert nodes.path(f) == "/new/e/f"


def test_what_is_renamed_over_loses_its_name(nodes):
    a, b = nodes.remember(nodes.root, "a", 0, False), nodes.remember(nodes.root, "b", 0, False)
    nodes.move(nodes.root, "a", nodes.root, "b")
    assert nodes.path(a) == "/b" and nodes.path(b) is None


def test_a_rename_of_a_name_that_is_not_known_detaches_the_target(nodes):
    b = nodes.remember(nodes.root, "b", 0, False)
    nodes.move(nodes.root, "unknown", nodes.root, "b")
    assert nodes.path(b) is None


def test_a_rename_between_names_of_one_file_changes_nothing(nodes):
    a = nodes.remember(nodes.root, "a", 7, False)
    nodes.remember(nodes.root, "b", 7, False)
    nodes.move(nodes.root, "a", nodes.root, "b")
    assert sorted(name for _, name in a.names) == ["a", "b"]


def test_an_exchange_swaps_the_paths(nodes):
    d = nodes.remember(nodes.root, "d", 0, True)
    a, b = nodes.remember(nodes.root, "a", 0, False), nodes.remember(d, "b", 0, False)
    nodes.exchange(nodes.root, "a", d, "b")
    assert (nodes.path(a), nodes.path(b)) == ("/d/b", "/a")


def test_an_exchange_of_two_names_of_one_file_keeps_both(nodes):
    a = nodes.remember(nodes.root, "a", 7, False)
    nodes.remember(nodes.root, "b", 7, False)
    nodes.exchange(nodes.root, "a", nodes.root, "b")
    assert sorted(nodes.root.children) == ["a", "b"] and len(a.names) == 2


def test_an_unlinked_node_remembers_its_last_path(nodes):
    d = nodes.remember(nodes.root, "d", 0, True)
    f = nodes.remember(d, "f", 0, False)
    nodes.detach(d, "f")
    assert nodes.path(f) is None and f.last_path == "/d/f"


def test_the_second_name_of_a_file_is_its_path_when_the_first_goes(nodes):
    f = nodes.remember(nodes.root, "a", 7, False)
    nodes.remember(nodes.root, "b", 7, False)
    nodes.detach(nodes.root, "a")
    assert nodes.path(f) == "/b"


def test_a_file_below_a_removed_directory_has_no_path(nodes):
    d = nodes.remember(nodes.root, "d", 0, True)
    f = nodes.remember(d, "f", 0, False)
    nodes.detach(nodes.root, "d")
    assert nodes.path(f) is None
    with pytest.raises(FileNotFoundError):
        nodes.child(d, "new")


def test_a_number_used_again_after_unlink_is_another_node(nodes):
    old = nodes.remember(nodes.root, "a", 7, False)
    nodes.detach(nodes.root, "a")
    assert nodes.remember(nodes.root, "b", 7, False) is not old


def test_forgotten_nodes_go_whatever_the_order(nodes):
    d = nodes.remember(nodes.root, "d", 0, True)
    f = nodes.remember(d, "f", 0, False)
    nodes.forget(d.nodeid, 1)
    assert len(nodes) == 3 and nodes.path(f) == "/d/f"
    nodes.forget(f.nodeid, 1)
    assert len(nodes) == 1


def test_a_forgotten_nodeid_is_estale(nodes):
    f = nodes.remember(nodes.root, "f", 0, False)
    nodes.forget(f.nodeid, 1)
    with pytest.raises(OSError) as caught:
        nodes.get(f.nodeid)
    assert caught.value.errno == errno.ESTALE


def test_forget_of_more_than_was_given_is_clamped_and_reported(nodes, caplog):
    f = nodes.remember(nodes.root, "f", 0, False)
    with caplog.at_level(logging.WARNING):
        nodes.forget(f.nodeid, 9)
        nodes.forget(99, 1)
    assert len(nodes) == 1 and "which has 1" in caplog.text and "nodeid 99" in caplog.text


def test_a_full_table_is_enfile():
    nodes = PathNodes(max_nodes=2)
    nodes.remember(nodes.root, "a", 0, False)
    with pytest.raises(OSError) as caught:
        nodes.remember(nodes.root, "b", 0, False)
    assert caught.value.errno == errno.ENFILE


def test_clear_leaves_the_root(nodes):
    nodes.remember(nodes.root, "a", 7, False)
    nodes.clear()
    assert len(nodes) == 1 and nodes.path(nodes.root) == "/"


def test_a_file_without_a_name_is_not_found_by_its_number(nodes):
    node = nodes.add_nameless(7, "/d")
    assert (nodes.path(node), node.last_path, node.nlookup) == (None, "/d", 1)
    assert nodes.remember(nodes.root, "a", 7, False) is not node


def test_a_file_that_got_its_first_name_is_found_by_its_number(nodes):
    node = nodes.add_nameless(7, "/")
    nodes.attach(node, nodes.root, "a")
    assert (nodes.path(node), node.nlookup) == ("/a", 2)
    assert nodes.remember(nodes.root, "b", 7, False) is node


def test_a_first_name_that_was_taken_changes_hands(nodes):
    before, node = nodes.remember(nodes.root, "a", 6, False), nodes.add_nameless(7, "/")
    nodes.attach(node, nodes.root, "a")
    assert (nodes.path(before), nodes.path(node)) == (None, "/a")


def test_an_open_node_outlives_its_lookups(nodes):
    node = nodes.remember(nodes.root, "a", 7, False)
    nodes.opened(node, 3, 0)
    nodes.opened(node, 3, 2)
    nodes.forget(node.nodeid, 1)
    nodes.closed(node, 3)
    assert nodes.open_handles() == [(node, 3, 2)] and nodes.path(node) == "/a"
    nodes.closed(node, 3)
    assert nodes.open_handles() == [] and len(nodes) == 1


def test_closing_what_is_not_open_is_nothing(nodes):
    node = nodes.remember(nodes.root, "a", 7, False)
    nodes.closed(node, 3)
    assert nodes.get(node.nodeid) is node
