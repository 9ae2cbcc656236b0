"""xattr names by virtiofsd's rules: the language, its documented recipes, a small model, and the wrapper."""

from __future__ import annotations

import errno
import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transfuse.filesystems.memory import MemoryFilesystem
from transfuse.fs.acl import ACCESS_XATTR
from transfuse.fs.request import Request
from transfuse.fs.values import MAP_CACHED, MAP_READ, MAP_WRITE, AttrChanges
from transfuse.fs.wrap import Wrapper
from transfuse.fs.xattrmap import HIDDEN_ACLS, Rule, XattrMap, XattrMapped, map_xattrs, parse_rules
from transfuse.testing import conformance
from transfuse.testing.direct import DirectVolume

EVERYTHING = ":prefix:all::user.virtiofs.::bad:all:::"
TRUSTED = """/prefix/all/trusted./user.virtiofs./
             /bad/server//trusted./
             /bad/client/user.virtiofs.//
             /ok/all///"""
NO_SECURITY = "/bad/all/security./security./ /ok/all///"


def mapped(text: str, name: bytes) -> bytes | int:
    """The server's name for a client's, or the errno."""
    try:
        return XattrMap.parse(text).to_server(name)
    except OSError as error:
        assert error.errno is not None
        return error.errno


class TestXattrMappedConforms(conformance.ReadWrite):
    transports = ("direct",)

    def make_filesystem(self, tmp_path):
        return map_xattrs(MemoryFilesystem(size_bytes=64 << 20), XattrMap.parse(":map::user.virtiofs.:"))


# -- the language --


def test_one_rule_has_four_fields():
    assert parse_rules(":prefix:client:trusted.:user.virtiofs.:") == [
        Rule("prefix", "client", b"trusted.", b"user.virtiofs.")
    ]


def test_rules_may_have_other_separators_and_stand_close_together():
    rules = parse_rules(" :bad:all:a:b:/ok/client///\n\t|unsupported|server|c|d| ")
    assert rules == [
        Rule("bad", "all", b"a", b"b"),
        Rule("ok", "client", b"", b""),
        Rule("unsupported", "server", b"c", b"d"),
    ]


def test_a_separator_may_be_any_character():
    assert parse_rules("ébadéallé:éé") == [Rule("bad", "all", b":", b"")]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "there is no rule"),
        (" \n", "there is no rule"),
        (":", "rule 1, character 2: no ':' behind the type"),
        (":prefix:all:a", "rule 1, character 13: no ':' behind the key"),
        (":prefix:all:a:b", "rule 1, character 15: no ':' behind the prepend"),
        (":ok:all::: :oops:all:::", "rule 2, character 13: type 'oops' is none of prefix, ok, bad, unsupported, map"),
        (":ok:guest:::", "rule 1, character 5: scope 'guest' is none of client, server, all"),
        (":map:a:b::ok:all:::", "rule 2, character 10: nothing may follow the map rule"),
        (":map:a:b::map:c:d:", "rule 2, character 10: nothing may follow the map rule"),
        (":ok:all:" + "x" * 256 + "::", "rule 1, character 9: the key has 256 bytes, 255 at most"),
        (":ok:all:a\0b::", "rule 1, character 9: a NUL in the key"),
        (":ok:all:::" * 257, "rule 257, character 2561: 256 rules at most"),
    ],
)
def test_an_error_says_rule_and_position(text, error):
    with pytest.raises(ValueError, match=re.escape(error)):
        parse_rules(text)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (":ok:client:::", "no rule decides all other names of the server; end with :ok:server:::"),
        (":ok:server:::", "no rule decides all other names of the client; end with :ok:client:::"),
        (":ok:all:user.::", "no rule decides all other names of the client"),
    ],
)
def test_rules_that_leave_names_undecided_are_refused(text, error):
    with pytest.raises(ValueError, match=error):
        XattrMap.parse(text)


def test_map_without_a_key_prefixes_everything():
    assert parse_rules(":map::user.virtiofs.:") == parse_rules(EVERYTHING)


def test_map_with_a_key_guards_the_prefix():
    assert parse_rules("/map/trusted./user.virtiofs./") == [
        Rule("prefix", "all", b"trusted.", b"user.virtiofs."),
        Rule("bad", "all", b"user.virtiofs.", b"trusted."),
        Rule("ok", "all", b"", b""),
    ]


# -- the recipes of doc/xattr-mapping.md --


@pytest.mark.parametrize("text", [EVERYTHING, ":map::user.virtiofs.:"])
def test_recipe_prefix_everything(text):
    rules = XattrMap.parse(text)
    assert rules.to_server(b"security.selinux") == b"user.virtiofs.security.selinux"
    assert rules.to_client(b"user.virtiofs.security.selinux") == b"security.selinux"
    assert rules.to_client(b"security.selinux") is None


@pytest.mark.parametrize("text", [TRUSTED, "/map/trusted./user.virtiofs./"])
def test_recipe_prefix_trusted(text):
    rules = XattrMap.parse(text)
    assert rules.to_server(b"trusted.x") == b"user.virtiofs.trusted.x"
    assert rules.to_client(b"user.virtiofs.trusted.x") == b"trusted.x"
    assert rules.to_client(b"trusted.host") is None
    assert mapped(text, b"user.virtiofs.trusted.x") == errno.EPERM
    assert rules.passes(b"user.mine") and rules.passes(b"security.capability")


def test_recipe_hide_security():
    rules = XattrMap.parse(NO_SECURITY)
    assert mapped(NO_SECURITY, b"security.selinux") == errno.EPERM
    assert rules.to_client(b"security.selinux") is None
    assert rules.passes(b"user.x") and rules.passes(b"trusted.x")


def test_a_rule_for_the_server_only_strips():
    text = ":prefix:server::user.virtiofs.::ok:all:::"
    assert mapped(text, b"user.x") == b"user.x"
    assert XattrMap.parse(text).to_client(b"user.virtiofs.a") == b"a"


def test_unsupported_names_are_enotsup_and_hidden():
    text = ":unsupported:all:system.:system.::ok:all:::"
    assert mapped(text, b"system.nfs4_acl") == errno.ENOTSUP
    assert XattrMap.parse(text).to_client(b"system.nfs4_acl") is None


def test_a_name_without_room_for_the_prefix_is_erange():
    assert mapped(":map::user.:", b"user." + b"x" * 245) == b"user.user." + b"x" * 245
    assert mapped(":map::user.:", b"user." + b"x" * 246) == errno.ERANGE


def test_nothing_but_the_prefix_is_not_listed():
    assert XattrMap.parse(":map::user.:").to_client(b"user.") is None


# -- a model: the table of the manual, word by word --

PARTS = st.sampled_from(["", "user.", "trusted.", "user.v.", "security.", "u", "us"])
RULE = st.tuples(
    st.sampled_from(["prefix", "ok", "bad", "unsupported"]), st.sampled_from(["client", "server", "all"]), PARTS, PARTS
)
NAMES = st.tuples(PARTS, PARTS, st.sampled_from(["", "x", "user.y"])).map("".join).filter(len)


def model_client(rules: list[tuple[str, str, str, str]], name: str) -> str | int:
    for kind, scope, key, prepend in rules:
        if scope in ("client", "all") and name[: len(key)] == key:
            return {"prefix": prepend + name, "ok": name, "bad": errno.EPERM, "unsupported": errno.ENOTSUP}[kind]
    raise AssertionError(f"{name} is undecided")


def model_server(rules: list[tuple[str, str, str, str]], names: list[str]) -> list[str]:
    shown = []
    for name in names:
        for kind, scope, _, prepend in rules:
            if scope in ("server", "all") and name[: len(prepend)] == prepend:
                if kind in ("prefix", "ok"):
                    shown.append(name[len(prepend) :] if kind == "prefix" else name)
                break
    return [name for at, name in enumerate(shown) if name and name not in shown[:at]]


@given(st.lists(RULE, max_size=5), st.sampled_from("ok bad prefix unsupported".split()), st.lists(NAMES), st.data())
def test_rules_do_what_the_manual_says(rules, last, names, data):
    rules = [*rules, (last, "all", "", "user.v." if last == "prefix" else ""), ("ok", "all", "", "")]
    separators = data.draw(st.lists(st.sampled_from(":/|!"), min_size=len(rules), max_size=len(rules)))
    gaps = data.draw(st.lists(st.sampled_from(["", " ", "\n\t"]), min_size=len(rules), max_size=len(rules)))
    text = "".join(
        gap + separator.join(["", *rule, ""]) for gap, separator, rule in zip(gaps, separators, rules, strict=True)
    )
    inside = Named()
    fs = XattrMapped(inside, XattrMap.parse(text))
    inside.names = [name.encode() for name in names]
    assert [os.fsdecode(name) for name in fs.listxattr(Request(), 1)] == model_server(rules, names)
    for name in names:
        expected = model_client(rules, name)
        for call in ("getxattr", "setxattr", "removexattr"):
            inside.used = None
            arguments = (b"", 0, False) if call == "setxattr" else ()
            try:
                getattr(fs, call)(Request(), 1, name.encode(), *arguments)
            except OSError as error:
                found: str | int | None = error.errno
            else:
                found = os.fsdecode(inside.used or b"")
            assert found == (errno.ENODATA if (call, expected) == ("getxattr", errno.EPERM) else expected)


class Named(Wrapper):
    """Remembers which name it was asked for."""

    def __init__(self) -> None:
        super().__init__(MemoryFilesystem())
        self.names: list[bytes] = []
        self.used: bytes | None = None

    def listxattr(self, req, nodeid):
        return self.names

    def getxattr(self, req, nodeid, name):
        self.used = name
        return b""

    def setxattr(self, req, nodeid, name, value, flags, kill_sgid):
        self.used = name

    def removexattr(self, req, nodeid, name):
        self.used = name


# -- over a filesystem --


@pytest.fixture
def fs():
    return MemoryFilesystem()


def test_the_peer_sees_its_own_names_only(fs):
    plain, seen = DirectVolume(fs), DirectVolume(map_xattrs(fs, XattrMap.parse(":map::user.virtiofs.:")))
    plain.write_bytes("/f", b"")
    plain.setxattr("/f", "user.host", b"h")
    seen.setxattr("/f", "user.guest", b"g")
    assert seen.listxattr("/f") == ["user.guest"]
    assert seen.getxattr("/f", "user.guest") == b"g"
    assert plain.getxattr("/f", "user.virtiofs.user.guest") == b"g"
    with pytest.raises(OSError) as caught:
        seen.getxattr("/f", "user.host")
    assert caught.value.errno == errno.ENODATA
    seen.removexattr("/f", "user.guest")
    assert plain.listxattr("/f") == ["user.host"]


def test_what_two_names_become_is_listed_once(fs):
    plain, seen = DirectVolume(fs), DirectVolume(map_xattrs(fs, XattrMap.parse(":prefix:all:user.a:user.:/ok/all///")))
    plain.write_bytes("/f", b"")
    plain.setxattr("/f", "user.user.a", b"1")
    plain.setxattr("/f", "user.a", b"2")
    assert seen.listxattr("/f") == ["user.a", "a"]


@pytest.mark.parametrize(("text", "acl"), [(":map::user.v.:", False), ("/map/trusted./user.v./", True)])
def test_acls_are_supported_only_where_they_pass_unchanged(text, acl):
    inner = MemoryFilesystem()
    assert inner.features.posix_acl
    seen = map_xattrs(inner, XattrMap.parse(text))
    assert seen.features.posix_acl is acl
    with pytest.raises(OSError) as caught:
        seen.getxattr(Request(), 1, ACCESS_XATTR)
    assert caught.value.errno == (errno.ENODATA if acl else errno.ENOTSUP)


def test_acls_can_be_hidden(fs):
    seen = map_xattrs(fs, XattrMap([*HIDDEN_ACLS, Rule("ok", "all", b"", b"")]))
    with pytest.raises(OSError) as caught:
        seen.getxattr(Request(), 1, ACCESS_XATTR)
    assert caught.value.errno == errno.ENOTSUP
    assert not seen.features.posix_acl


def test_data_stays_with_the_filesystem_unless_capabilities_are_mapped(fs):
    class Mapping(Wrapper):
        def map(self, req, nodeid, fh, offset, length, intent):
            return None

        def operations(self):
            return super().operations() | {"map"}

    for text in (NO_SECURITY, ":map::user.:"):
        assert "map" in map_xattrs(Mapping(fs), XattrMap.parse(text)).operations()
    assert map_xattrs(fs, XattrMap.parse(NO_SECURITY)).write == fs.write


# -- security.capability under another name --


class Holding(Wrapper):
    """Has one regular file, 2, and says whether its capability is still there."""

    def __init__(self, fs):
        super().__init__(fs)
        self.features.passthrough = True

    def map(self, req, nodeid, fh, offset, length, intent):
        return None

    def operations(self):
        return super().operations() | {"map"}


@pytest.fixture
def capable(fs):
    plain = DirectVolume(fs)
    plain.write_bytes("/f", b"0123")
    plain.mkdir("/d")
    seen = map_xattrs(Holding(fs), XattrMap.parse(":map::user.v.:"))
    for name in (b"f", b"d"):
        seen.setxattr(Request(), seen.lookup(Request(), 1, name).nodeid, b"security.capability", b"cap", 0, False)
    return seen


def has_capability(seen, name=b"f"):
    return b"security.capability" in seen.listxattr(Request(), seen.lookup(Request(), 1, name).nodeid)


CHANGES = {
    "chown": lambda fs, n, fh: fs.setattr(Request(), n, AttrChanges(uid=0), None),
    "chgrp": lambda fs, n, fh: fs.setattr(Request(), n, AttrChanges(gid=0), None),
    "truncate": lambda fs, n, fh: fs.setattr(Request(), n, AttrChanges(size=1), None),
    "write": lambda fs, n, fh: fs.write(Request(), n, fh, b"x", 0, 0),
    "map for a write": lambda fs, n, fh: fs.map(Request(), n, fh, 0, 1, MAP_WRITE | MAP_CACHED),
    "open with O_TRUNC": lambda fs, n, fh: fs.open(Request(), n, os.O_RDWR | os.O_TRUNC),
    "create with O_TRUNC": lambda fs, n, fh: fs.create(Request(), 1, b"f", 0o644, 0, os.O_RDWR | os.O_TRUNC),
    "fallocate": lambda fs, n, fh: fs.fallocate(Request(), n, fh, 0, 0, 1),
    "copy_file_range": lambda fs, n, fh: fs.copy_file_range(Request(), n, fh, 0, n, fh, 2, 1, 0),
}
KEEPING = {
    "chmod": lambda fs, n, fh: fs.setattr(Request(), n, AttrChanges(mode=0o600), None),
    "read": lambda fs, n, fh: fs.read(Request(), n, fh, 1, 0),
    "map for a read": lambda fs, n, fh: fs.map(Request(), n, fh, 0, 1, MAP_READ),
    "open": lambda fs, n, fh: fs.open(Request(), n, os.O_RDWR),
    "setxattr": lambda fs, n, fh: fs.setxattr(Request(), n, b"user.x", b"", 0, False),
}


@pytest.mark.parametrize("change", [*CHANGES, *KEEPING])
def test_changes_of_data_or_owner_take_a_mapped_capability_away(capable, change):
    nodeid = capable.lookup(Request(), 1, b"f").nodeid
    fh = capable.open(Request(), nodeid, os.O_RDWR).fh
    (CHANGES | KEEPING)[change](capable, nodeid, fh)
    assert has_capability(capable) == (change in KEEPING)
    again = capable.open(Request(), nodeid, os.O_RDWR).fh
    (CHANGES | KEEPING)[change](capable, nodeid, again)  # and once more, with nothing to take away


def test_a_directory_keeps_what_it_has(capable):
    nodeid = capable.lookup(Request(), 1, b"d").nodeid
    capable.setattr(Request(), nodeid, AttrChanges(uid=0), None)
    assert has_capability(capable, b"d")


def test_the_kernel_does_not_write_past_a_mapped_capability(capable):
    assert not capable.features.passthrough


def test_coroutines_can_not_mind_a_mapped_capability():
    class Later(MemoryFilesystem):
        async def removexattr(self, req, nodeid, name):
            raise OSError(errno.ENODATA, "")

    with pytest.raises(TypeError, match=r"removexattr\(\) is a coroutine"):
        map_xattrs(Later(), XattrMap.parse(":map::user.v.:"))
    assert isinstance(map_xattrs(Later(), XattrMap.parse(NO_SECURITY)), XattrMapped)
