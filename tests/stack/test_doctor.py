"""What the doctor says of machines."""

from pathlib import Path

import pytest

from pipeline.stack import doctor


@pytest.mark.parametrize(
    ("check", "ok"),
    [
        (doctor.check_python((3, 11)), True),
        (doctor.check_python((3, 13)), False),
        (doctor.check_platform("Linux", "x86_64"), True),
        (doctor.check_platform("Darwin", "arm64"), False),
        (doctor.check_glibc(("glibc", "2.36")), True),
        (doctor.check_glibc(("glibc", "2.31")), False),
        (doctor.check_glibc(("", "")), False),
        (doctor.check_numpy("1.26.4"), True),
        (doctor.check_numpy("2.1.0"), False),
        (doctor.check_numpy(None), False),
        (doctor.check_pyarrow(None), True),
        (doctor.check_pyarrow("26.0.0"), False),
        (doctor.check_package("no_such_module", "no-such"), False),
        (doctor.check_port(9092, is_free=lambda _: False), False),
    ],
)
def test_finding_tells_how_to_mend(check: doctor.Check, ok: bool) -> None:
    """A good finding needs no remedy, a bad one has one."""
    assert check.ok is ok
    assert bool(check.mend) is not ok


def test_data_folder_may_not_exist_yet(tmp_path: Path) -> None:
    """The nearest existing folder decides whether the data folder can be made."""
    assert doctor.check_data_dir(tmp_path / "a" / "b").ok
