from __future__ import annotations

import inspect

import pytest

from transfuse.fs.base import OPERATION_NAMES, Filesystem
from transfuse.fs.path import PATH_OPERATION_NAMES, PathFilesystem
from transfuse.fs.values import Attr
from transfuse.testing.direct import DirectVolume

SAME_PLACE = {"nodeid": "path", "parent": "path", "nodeid_in": "path_in", "nodeid_out": "path_out"}


class Smallest(PathFilesystem):
    FILES = {"/hello": b"Hello, world!\n"}

    def getattr(self, req, path, fh):
        if path == "/":
            return Attr.directory(0)
        if path in self.FILES:
            return Attr.file(0, len(self.FILES[path]))
        raise FileNotFoundError(path)

    def listdir(self, req, path):
        return [name[1:] for name in self.FILES]

    def read(self, req, path, fh, size, offset):
        return self.FILES[path][offset : offset + size]


def test_the_smallest_filesystem_is_read():
    volume = DirectVolume(Smallest().as_filesystem())
    assert volume.listdir("/") == ["hello"] and volume.read_bytes("/hello") == b"Hello, world!\n"


def test_the_smallest_filesystem_has_no_more_than_it_has():
    assert Smallest().as_filesystem().operations() == {"getattr", "lookup", "forget", "readdir", "read"}


def test_files_without_a_number_show_their_nodeid():
    assert DirectVolume(Smallest().as_filesystem()).stat("/hello").ino == 2


def test_a_misspelt_operation_is_refused_with_the_nearest_name():
    with pytest.raises(TypeError, match="did you mean 'readlink'"):

        class Wrong(PathFilesystem):
            def readlnk(self, req, path):
                return ""


def test_an_operation_of_the_inode_layer_only_is_refused():
    with pytest.raises(TypeError, match="lookup"):

        class Wrong(PathFilesystem):
            def lookup(self, req, path):
                return ""


def test_a_filesystem_without_getattr_is_refused():
    with pytest.raises(TypeError, match="getattr"):
        PathFilesystem().as_filesystem()


def test_the_operations_are_those_of_the_inode_layer():
    assert OPERATION_NAMES - PATH_OPERATION_NAMES == {"lookup", "forget", "bmap", "map"} & OPERATION_NAMES
    assert PATH_OPERATION_NAMES - OPERATION_NAMES == {"listdir"}


@pytest.mark.parametrize("name", sorted((OPERATION_NAMES & PATH_OPERATION_NAMES) - {"rename", "link"}))
def test_arguments_are_those_of_the_inode_layer_with_paths_for_nodes(name):
    theirs = list(inspect.signature(getattr(Filesystem, name)).parameters)
    if theirs[2:4] == ["parent", "name"]:
        theirs[2:4] = ["path"]
    theirs = [SAME_PLACE.get(parameter, parameter) for parameter in theirs]
    assert list(inspect.signature(getattr(PathFilesystem, name)).parameters) == theirs
