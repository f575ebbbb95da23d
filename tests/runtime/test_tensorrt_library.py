"""Which plan of an artifact runs here, and one sentence where none does."""

import numpy as np
import pytest

from runtime.engines.tensorrt.engine import widen_bfloat16
from runtime.engines.tensorrt.library import (
    choose_plan,
    installed_versions,
    require_model,
    switch_profile,
)
from runtime.errors import UnsupportedError
from runtime.manifest_schema import PlanEntry, Profile


def plan(library: str, version: str, card: str) -> PlanEntry:
    return PlanEntry(
        file="x.plan",
        library=library,
        version=version,
        compute_capability=card,
        attention="padded",
        profiles=[Profile(9, 9, 9)],
        refit=False,
        refused={},
    )


PLANS = [plan("tensorrt", "11.4.0", "9.0"), plan("tensorrt_rtx", "1.7.1", "8.9")]


class TestChoosePlan:
    def test_by_card_and_version(self) -> None:
        both = {"tensorrt": "11.4.0", "tensorrt_rtx": "1.7.1"}
        assert choose_plan(PLANS, both, "9.0") is PLANS[0]
        assert choose_plan(PLANS, both, "8.9") is PLANS[1]

    @pytest.mark.parametrize(
        ("versions", "card", "here"),
        [
            ({"tensorrt_rtx": "1.7.1"}, "12.0", "TensorRT-RTX 1.7.1 and a card of compute .* 12.0"),
            ({"tensorrt_rtx": "1.6.0"}, "8.9", "TensorRT-RTX 1.6.0 and a card of compute .* 8.9"),
            ({"tensorrt": "11.4.0"}, "8.9", "TensorRT 11.4.0 and a card of compute .* 8.9"),
        ],
    )
    def test_another_card_or_version_is_named(
        self, versions: dict[str, str], card: str, here: str
    ) -> None:
        there = (
            "its plans are for TensorRT 11.4.0 on compute capability 9.0, TensorRT-RTX 1.7.1 on "
            "compute capability 8.9; here are "
        )
        with pytest.raises(UnsupportedError, match=f"{there}{here}. Build one here"):
            choose_plan(PLANS, versions, card)

    def test_a_library_that_is_not_installed(self) -> None:
        message = r"TensorRT is not installed .*pip install 'esm2-engines\[tensorrt\]'"
        with pytest.raises(UnsupportedError, match=message):
            installed_versions(PLANS[:1])


class TestRequireModel:
    def test_a_plan_of_tensorrt_is_for_one_model_of_card(self) -> None:
        require_model(PLANS[0], "NVIDIA H100 PCIe", "NVIDIA H100 PCIe")
        message = "its plan is for NVIDIA H100 PCIe, this card is NVIDIA H200. Build one here"
        with pytest.raises(UnsupportedError, match=message):
            require_model(PLANS[0], "NVIDIA H100 PCIe", "NVIDIA H200")

    def test_others_are_for_a_compute_capability(self) -> None:
        require_model(PLANS[0], None, "NVIDIA H200")
        require_model(PLANS[1], "NVIDIA RTX 4090", "NVIDIA L40")


def test_a_refused_profile_is_no_traceback() -> None:
    class Context:
        """Refuses as NVIDIA's bindings do."""

        def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
            if profile > 1:
                raise RuntimeError("Error in set optimization profile async.")
            return True

    assert switch_profile(Context(), 1, 0)
    assert not switch_profile(Context(), 2, 0)


def test_bfloat16_is_widened_exactly() -> None:
    bits = np.array([0x0000, 0x3F80, 0xBF80, 0x7F7F, 0x0001, 0x4049], np.uint16)
    wide = widen_bfloat16(bits)
    assert wide.dtype == np.float32
    expected = [0, 1, -1, 3.3895313892515355e38, 9.183549615799121e-41, 3.140625]
    assert wide.tolist() == expected
    halves = np.ones(3, np.float16)
    assert widen_bfloat16(halves) is halves
