"""The backend of Apple's framework, over coremltools' real wrapper and a stand-in for the parts that only macOS has.

The stand-ins keep names, attributes and errors of coremltools 9.0: MLModel (its duration in nanoseconds, its
plain Exceptions), MLComputePlan (its structure is made of coremltools' own dataclasses), Device and devicectl's JSON.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from repro.coreml import apple
from repro.coreml.apple import Mac, Phone
from repro.coreml.latency import BackendError, fallen, placement_summary
from repro.coreml.quiet import import_coremltools
from repro.coreml.timing import inputs_of
from repro.results.latency import UNKNOWN


class MLNeuralEngineComputeDevice:
    """As coremltools' class of the same name, which only macOS can make."""


class MLCPUComputeDevice:
    """As coremltools' class of the same name, which only macOS can make."""


class FakeModel:
    """coremltools.models.MLModel on a Mac: predicts, and says how long the framework's call took."""

    error: str | None = None
    duration: int | None = 1_250_000

    def __init__(self, model: str, weights_dir: str, compute_units: Any, function_name: Any, optimization_hints: Any):
        self.package_path, self.compute_unit = model, compute_units
        self.__proxy__ = object() if "broken" not in model else None

    def predict(self, data: dict[str, Any], state: Any = None) -> dict[str, Any]:
        if self.error is not None:
            raise Exception(self.error)
        assert set(data) == {"x0"}
        return {"y": np.zeros(1)}

    @property
    def last_predict_duration_in_nano_seconds(self) -> int | None:
        return self.duration

    def get_compiled_model_path(self) -> str:
        return "/compiled.mlmodelc"


class FakePlan:
    """coremltools' MLComputePlan of a convolution, a GELU on the CPU and a nested block, with a constant."""

    def __init__(self) -> None:
        from coremltools.models.compute_plan import (
            MLModelStructure,
            MLModelStructureProgram,
            MLModelStructureProgramBlock,
            MLModelStructureProgramFunction,
            MLModelStructureProgramNamedValueType,
            MLModelStructureProgramOperation,
            MLModelStructureProgramValueType,
        )

        def operation(name: str, kind: str, blocks: list[Any]) -> Any:
            value = MLModelStructureProgramNamedValueType(name=name, type=MLModelStructureProgramValueType())
            return MLModelStructureProgramOperation(
                inputs={}, operator_name=kind, outputs=[value], blocks=blocks, __proxy__=None
            )

        def block(*operations: Any) -> Any:
            return MLModelStructureProgramBlock(inputs=[], operations=list(operations), output_names=[])

        inner = block(operation("deep", "ios15.add", []))
        main = block(
            operation("weight", "const", []),
            operation("first", "ios15.conv", []),
            operation("middle", "ios15.gelu", []),
            operation("branch", "ios15.cond", [inner]),
        )
        program = MLModelStructureProgram(functions={"main": MLModelStructureProgramFunction(inputs=[], block=main)})
        self.model_structure = MLModelStructure(neuralnetwork=None, program=program, pipeline=None)

    def get_compute_device_usage_for_mlprogram_operation(self, operation: Any) -> Any:
        from coremltools.models.compute_plan import MLComputePlanDeviceUsage

        engine: Any = MLNeuralEngineComputeDevice()
        cpu: Any = MLCPUComputeDevice()
        if operation.operator_name == "const":
            return None
        preferred = cpu if operation.operator_name == "ios15.gelu" else engine
        return MLComputePlanDeviceUsage(preferred_compute_device=preferred, supported_compute_devices=[cpu, engine])

    def get_estimated_cost_for_mlprogram_operation(self, operation: Any) -> Any:
        from coremltools.models.compute_plan import MLComputePlanCost

        return None if operation.operator_name == "const" else MLComputePlanCost(weight=0.25)


SYSTEM = {
    ("sysctl", "-n", "hw.model"): "Mac14,2",
    ("sysctl", "-n", "machdep.cpu.brand_string"): "Apple M2",
    ("sw_vers", "-productVersion"): "14.5",
    ("sw_vers", "-buildVersion"): "23F79",
    ("xcodebuild", "-version"): "Xcode 15.4\nBuild version 15F31d",
    ("ioreg", "-r", "-k", "product-name", "-d", "1"): '  "product-name" = <"MacBook Air (M2, 2022)">',
    ("pmset", "-g", "therm"): "CPU_Scheduler_Limit \t= 100\n\tCPU_Speed_Limit \t= 80",
    ("pmset", "-g"): " lowpowermode         1\n",
    ("xcrun", "--find", "devicectl"): "/usr/bin/devicectl",
}


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this machine answer as a Mac does."""
    import_coremltools()
    from coremltools.models.ml_program.experimental import async_wrapper

    monkeypatch.setattr("platform.system", lambda: "Darwin")
    monkeypatch.setattr(apple, "_said", lambda *command: SYSTEM.get(command, ""))
    monkeypatch.setattr(async_wrapper, "MLModel", FakeModel)

    def load(path: str, compute_units: Any) -> FakePlan:
        assert (path, compute_units.name) == ("/compiled.mlmodelc", "CPU_AND_NE")
        return FakePlan()

    monkeypatch.setattr(async_wrapper.MLComputePlan, "load_from_path", load)


@pytest.mark.usefixtures("mac")
def test_a_prediction_on_this_mac_is_the_framework_s_own_duration(package: Path) -> None:
    from repro.coreml.package import Package

    backend = Mac()
    with backend.session(package, "cpu_and_ne") as session:
        assert session.predict(inputs_of(Package.open(package))) == 1.25
        placed = session.placement()
        conditions = session.conditions()
    assert [(item.name, item.type, item.device) for item in placed] == [
        ("weight", "const", "unknown"),
        ("first", "conv", "neural_engine"),
        ("middle", "gelu", "cpu"),
        ("branch", "cond", "neural_engine"),
        ("deep", "add", "neural_engine"),
    ]
    assert placed[1].supported == ("cpu", "neural_engine")
    assert "1 gelu on cpu" in (fallen(placement_summary(placed), "cpu_and_ne") or "")
    assert conditions.thermal_state == "CPU_Scheduler_Limit 100, CPU_Speed_Limit 80"
    assert conditions.low_power_mode == "on"
    device = backend.device()
    assert (device.model, device.identifier, device.chip) == ("MacBook Air (M2, 2022)", "Mac14,2", "Apple M2")
    assert (device.os_version, device.os_build, device.xcode) == ("macOS 14.5", "23F79", "15.4 Build version 15F31d")


@pytest.mark.usefixtures("mac")
def test_what_the_framework_raises_is_one_line(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = Mac()
    inputs = {"x0": np.zeros((1, 3, 8, 8), dtype=np.float32)}
    with (
        pytest.raises(BackendError, match=r"broken\.mlpackage: cannot be loaded: Failed to load model$"),
        backend.session(tmp_path / "broken.mlpackage", "all"),
    ):
        pass
    monkeypatch.setattr(FakeModel, "error", "Error computing NN outputs.\nand more")
    with backend.session(package, "all") as session, pytest.raises(BackendError, match=r"outputs\.$"):
        session.predict(inputs)
    monkeypatch.setattr(FakeModel, "error", None)
    monkeypatch.setattr(FakeModel, "duration", None)
    with backend.session(package, "all") as session, pytest.raises(BackendError, match="does not say how long"):
        session.predict(inputs)


def test_elsewhere_than_on_a_mac_there_is_no_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.system", lambda: "Linux")
    for make in (Mac, Phone):
        with pytest.raises(BackendError, match="Core ML predicts only on macOS"):
            make()


DEVICES = {
    "result": {
        "devices": [
            {
                "identifier": "A1B2",
                "hardwareProperties": {
                    "deviceType": "iPhone", "productType": "iPhone14,5", "marketingName": "iPhone 13", "udid": "U1",
                },
                "deviceProperties": {
                    "name": "Anna's phone", "osVersionNumber": "17.5.1", "osBuildUpdate": "21F90",
                    "developerModeStatus": "enabled",
                },
                "connectionProperties": {"tunnelState": "connected"},
            }
        ]
    }
}  # fmt: skip


@pytest.fixture
def phone(mac: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connected iPhone: devicectl's JSON, and a runner that starts."""
    from coremltools.models.ml_program.experimental import async_wrapper, remote_device

    def said(*command: str) -> str:
        if command[:4] == ("xcrun", "devicectl", "list", "devices"):
            Path(command[-1]).write_text(json.dumps(DEVICES))
        return SYSTEM.get(command, "")

    async def prepare(self: Any, credentials: Any, working_directory: Path, clean: bool = False) -> Any:
        assert (credentials.development_team, working_directory.is_dir()) == ("TEAM", True)
        return self

    class Remote(FakeModel):
        def __init__(self, spec_or_path: str, device: Any, **options: Any) -> None:
            assert isinstance(device, remote_device.Device)

        async def load(self) -> None:
            pass

        async def unload(self) -> None:
            pass

        async def predict(self, inputs: dict[str, Any], state: Any = None) -> dict[str, Any]:
            raise remote_device._DeviceCtlError(error_code=-32001, message="The model is not currently loaded.")

    monkeypatch.setattr(apple, "_said", said)
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(Path, "is_dir", lambda self: True)
    monkeypatch.setattr(remote_device._DeviceCtl, "_run_command", lambda command: DEVICES)
    monkeypatch.setattr(remote_device.Device, "prepare_for_model_debugging", prepare)
    monkeypatch.setattr(async_wrapper, "RemoteMLModelAsyncWrapper", Remote)


@pytest.mark.usefixtures("phone")
def test_a_connected_phone(package: Path, tmp_path: Path) -> None:
    backend = Phone(team="TEAM", working=str(tmp_path))
    device = backend.device()
    assert (device.model, device.identifier, device.chip) == ("iPhone 13", "iPhone14,5", "A15 Bionic")
    assert (device.os_version, device.os_build) == ("iOS 17.5.1", "21F90")
    assert backend.conditions().thermal_state == UNKNOWN
    with backend.session(package, "all") as session:
        with pytest.raises(BackendError, match=r"cannot predict: .*not currently loaded"):
            session.predict({"x0": np.zeros((1, 3, 8, 8), dtype=np.float32)})
        with pytest.raises(BackendError, match="export with --input tensor"):
            session.predict({"x0": object()})


@pytest.mark.usefixtures("phone")
def test_what_is_missing_for_a_phone_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="needs signing: give --team or REPRO_APPLE_TEAM"):
        Phone(working=str(tmp_path))
    with pytest.raises(BackendError, match="0 connected iPhones are called Bob: Anna's phone"):
        Phone(device="Bob", team="TEAM", working=str(tmp_path))
    monkeypatch.setitem(DEVICES, "result", {"devices": []})
    with pytest.raises(BackendError, match="needs a connected iPhone: connect by cable"):
        Phone(team="TEAM", working=str(tmp_path))
