"""Small inputs that once failed: verification sets that today's packers write (case 3)."""

import pytest

from bct.protocols.pairs import load_bin


@pytest.mark.parametrize(
    "name", ["writable", "readonly", "issame_array", "bytearray", "float_flags"]
)
def test_every_packing_gives_the_same_set(shared, name):
    cases = shared / "cases" / "3"
    want, got = load_bin(cases / "ok_p4.bin"), load_bin(cases / f"{name}.bin")
    assert len(got) == 2 * len(got.issame) == 24
    assert (got.issame == want.issame).all() and (got.images == want.images).all()
    assert got.issame.tolist() == [False, True] * 6
