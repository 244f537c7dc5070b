"""Predictions: ratios of rates with a stated band, and nothing where a rate is not known."""

import msgspec
import pytest

import device_profiles
from edge_sdk.build import measure, predict
from edge_sdk.build.stages import Quantity

HOST = device_profiles.load(
    "x86-gateway-n100",
    ("cpu.model=host", "cpu.clock_mhz=1000", "cpu.fp32_macs_per_cycle=32",
     "cpu.int8_macs_per_cycle=128"),
)  # fmt: skip
ARM = device_profiles.load(
    "raspberry-pi-4b",
    ("cpu.clock_mhz=1000", "cpu.fp32_macs_per_cycle=4", "cpu.int8_macs_per_cycle=8"),
)
OTHER_X86 = device_profiles.load(
    "x86-gateway-n100",
    ("cpu.clock_mhz=1000", "cpu.fp32_macs_per_cycle=8", "cpu.int8_macs_per_cycle=16"),
)


def ms(value):
    return Quantity("measured", value, "ms", "here")


def latency(device, *, integer, candidate=4.0, float32=8.0):
    base = ms(float32) if float32 else None
    return predict.latency(HOST, device, candidate=ms(candidate), float32=base, integer=integer)


def test_this_very_machine_is_measured_and_not_predicted():
    assert latency(HOST, integer=True) == ms(4.0)


def test_float_scales_with_the_float_rates():
    predicted = latency(ARM, integer=False)
    assert (predicted.kind, predicted.value) == ("predicted", 8.0 * 32 / 4)
    assert (predicted.low, predicted.high) == (pytest.approx(64 / 3), pytest.approx(64 * 3))


def test_integer_on_another_architecture_keeps_half_of_the_promise_on_a_log_scale():
    assert latency(ARM, integer=True).value == pytest.approx(8.0 * 32 / 4 / 2**0.5)


def test_integer_on_the_same_architecture_keeps_its_speed_up_on_a_log_scale():
    # Twice as fast here, where the processor promises 4x; the device promises 2x: half of log 2.
    assert latency(OTHER_X86, integer=True).value == pytest.approx(8.0 * 32 / 8 / 2**0.5)


def test_a_float_candidate_keeps_its_own_speed_on_the_same_architecture():
    assert latency(OTHER_X86, integer=False, candidate=16.0).value == 16.0 * 32 / 8


def test_an_unknown_integer_rate_counts_as_float():
    cpu = msgspec.structs.replace(OTHER_X86.cpu, int8_macs_per_cycle=None)
    device = msgspec.structs.replace(OTHER_X86, cpu=cpu)
    assert latency(device, integer=True).value == 8.0 * 32 / 8


def test_an_unknown_rate_or_float_time_gives_no_number():
    cpu = msgspec.structs.replace(ARM.cpu, fp32_macs_per_cycle=None)
    device = msgspec.structs.replace(ARM, cpu=cpu)
    assert latency(device, integer=False).kind == "unknown"
    assert latency(device, integer=False).note == f"no MAC rate for {ARM.cpu.model}"
    assert latency(ARM, integer=True, float32=None).kind == "unknown"
    assert "float model was not timed" in latency(ARM, integer=True, float32=None).note


def test_memory_carries_over_within_a_band():
    predicted = predict.memory(HOST, ARM, Quantity("measured", 100.0, "MB", "here"))
    assert (predicted.kind, predicted.low, predicted.high) == ("predicted", 75.0, 125.0)


def test_energy_is_board_power_times_latency():
    device = device_profiles.load("raspberry-pi-4b")
    predicted = predict.energy(device, Quantity("predicted", 100.0, "ms", "", 50.0, 200.0))
    assert predicted.value == pytest.approx(640)
    assert (predicted.low, predicted.high) == (pytest.approx(50 * 3.7), pytest.approx(1280))
    none = msgspec.structs.replace(device, power_modes=())
    assert predict.energy(none, ms(1.0)).kind == "unknown"


def test_the_band_holds_the_published_times_of_a_phone():
    """EfficientNet-Lite0 on a Pixel 4, 4 threads: 12 ms float, 6.5 ms INT8 (tensorflow/tpu,
    efficientnet/lite). Its prime core is a Cortex-A76 at 2.84 GHz, three more run at 2.42 GHz; the
    float time here is the 7.89 ms that ONNX Runtime 1.31.1 took on an AVX-512 core at 2.7 GHz."""
    host = device_profiles.load(
        "x86-gateway-n100", ("cpu.model=host", "cpu.clock_mhz=2700", "cpu.fp32_macs_per_cycle=32")
    )
    phone = device_profiles.load(
        "raspberry-pi-5", ("cpu.model=phone", "cpu.clock_mhz=2840")
    )  # the same core
    cores = (2.84 + 3 * 2.42) / 2.84
    for integer, published in ((False, 12.0), (True, 6.5)):
        predicted = predict.latency(
            host, phone, candidate=ms(7.89), float32=ms(7.89), integer=integer
        )
        assert predicted.low / cores <= published <= predicted.high / cores


def test_threads_are_timed_in_powers_of_two_and_with_all_cores():
    assert [measure.thread_counts(cores) for cores in (1, 2, 3, 4, 6)] == [
        (1,), (1, 2), (1, 2, 3), (1, 2, 4), (1, 2, 4, 6),
    ]  # fmt: skip
